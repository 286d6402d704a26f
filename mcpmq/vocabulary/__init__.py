"""Vocabulary trimming: a checkpoint with fewer tokens, as a view of the original that renumbers ids in one place."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from mcpmq.checkpoint import CONFIG, Checkpoint
from mcpmq.checkpoint.kept_vocabulary import KeptVocabulary
from mcpmq.checkpoint.text_files import copy_files, to_json
from mcpmq.compression_tables import VocabularyTable
from mcpmq.dataset import SampleSet
from mcpmq.errors import CheckpointError
from mcpmq.families.tokenizer import complete_tokenizer, read_tokenizer
from mcpmq.system.json_file import read_json, read_optional_json
from mcpmq.system.progress import Progress, silent
from mcpmq.system.temporary_folder import temporary_folder
from mcpmq.vocabulary.byte_level_bpe import ByteLevelBpe, token_bytes
from mcpmq.vocabulary.corpus import read_corpus, template_tokens
from mcpmq.vocabulary.letters import script_of_text
from mcpmq.vocabulary.renumbering import ID_FILES, TOKENIZER, renumber_config, renumbered_file, token_ids_in
from mcpmq.vocabulary.selection import select_tokens

__all__ = ["trim_vocabulary", "trimmed_view"]
ADDED = "added tokens"  # in the numbers of tokens by script


@contextmanager
def trim_vocabulary(
    checkpoint: Checkpoint,
    table: VocabularyTable | None,
    calibration: SampleSet | None = None,
    progress: Progress = silent,
) -> Iterator[Checkpoint]:
    """Yield the checkpoint with the tokens that a [vocabulary] table keeps, valid inside of the `with` block.

    No weight is read. Without a table the checkpoint itself is yielded.

    Raises:
        CheckpointError: the tokenizer is not byte-level BPE, or its files contradict each other.
        RecipeError: the table is not valid for the tokenizer, or removes no token.
        DatasetError: the table needs the calibration set, and it is not given.
    """
    if table is None:
        yield checkpoint
        return
    bpe = read_bpe(checkpoint)
    processor = checkpoint.family.open_processor(checkpoint.path)
    corpus = read_corpus(table.corpus, processor, calibration, progress)
    required = template_tokens(processor, has_vision=checkpoint.architecture.vision is not None)
    ids = select_tokens(bpe, table, required | _configured_ids(checkpoint, bpe), corpus.counts)
    size = checkpoint.architecture.language.vocab_size
    with trimmed_view(checkpoint, KeptVocabulary.from_ids(ids, size, *_by_script(bpe, ids), corpus.sha256)) as view:
        yield view


@contextmanager
def trimmed_view(checkpoint: Checkpoint, vocabulary: KeptVocabulary) -> Iterator[Checkpoint]:
    """Yield the checkpoint with the kept tokens: rows are selected when weights are read, text files are rewritten.

    Raises:
        CheckpointError: the vocabulary is not a part of that of the checkpoint.
    """
    bpe, ids = read_bpe(checkpoint), vocabulary.ids
    size = checkpoint.architecture.language.vocab_size
    if vocabulary.original_size != size or not {*bpe.added.values()} <= {*ids.tolist()}:
        raise CheckpointError(
            f"the trimmed vocabulary is one of {vocabulary.original_size:,} tokens; it is not a part of the {size:,} of"
            f" `{checkpoint.path}`",
            "give the original of the artifact",
        )
    new_ids = {number: index for index, number in enumerate(ids.tolist())}
    config = renumber_config(checkpoint.config, new_ids, vocabulary.size)
    with temporary_folder() as folder:
        texts = {file.name: renumbered_file(file.path, bpe, new_ids) for file in checkpoint.text_files}
        replaced = {name: text for name, text in texts.items() if text is not None}
        copy_files(checkpoint.text_files, folder, {**replaced, CONFIG: to_json(config)})
        view = checkpoint.with_vocabulary(vocabulary, folder, config)
        _check_ids(view, bpe, new_ids)
        yield view


def read_bpe(checkpoint: Checkpoint) -> ByteLevelBpe:
    """Return the tokenizer of a checkpoint.

    Raises:
        CheckpointError: it cannot be trimmed.
    """
    path = checkpoint.path
    bpe = ByteLevelBpe.parse(complete_tokenizer(path) or read_json(path / TOKENIZER))
    size = checkpoint.architecture.language.vocab_size
    if (largest := max(bpe.all_ids.values())) >= size:
        raise CheckpointError(
            f"the tokenizer has the id {largest:,}, the embedding {size:,} rows", "use the files of one checkpoint"
        )
    return bpe


def _configured_ids(checkpoint: Checkpoint, bpe: ByteLevelBpe) -> set[int]:
    """Return the tokens that configuration files refer to."""
    files = [checkpoint.config, *(read_optional_json(checkpoint.path / name) for name in ID_FILES)]
    return {number for file in files for number in token_ids_in(file)} & set(bpe.all_ids.values())


def _by_script(bpe: ByteLevelBpe, ids: NDArray[np.int64]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the numbers of kept and of removed tokens by script."""
    kept, counts = set(ids.tolist()), (Counter[str](), Counter[str]())
    for token, number in bpe.all_ids.items():
        counts[number not in kept][ADDED if token in bpe.added else _script(token)] += 1
    return dict(sorted(counts[0].items())), dict(sorted(counts[1].items()))


def _check_ids(view: Checkpoint, bpe: ByteLevelBpe, new_ids: Mapping[int, int]) -> None:
    """Check that the tokenizer library reads the written files with the ids of the rows.

    Raises:
        CheckpointError: it does not, because the original has gaps between its ids.
    """
    found = read_tokenizer(view.path).get_vocab(with_added_tokens=True)
    expected = {text: new_ids[number] for text, number in bpe.all_ids.items() if number in new_ids}
    if wrong := [text for text in expected if found.get(text) != expected[text]]:
        raise CheckpointError(
            f"the vocabulary cannot be trimmed: {len(wrong):,} of {len(expected):,} tokens have other ids in the new"
            f" tokenizer, first `{wrong[0]}` with {found.get(wrong[0])} instead of {expected[wrong[0]]}",
            "compare the tokenizer files with the published files",
        )


def _script(token: str) -> str:
    return script_of_text((token_bytes(token) or b"").decode(errors="ignore"))
