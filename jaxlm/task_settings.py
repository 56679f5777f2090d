"""The settings of section task: labelled examples and what is learned from them."""

from jaxlm.setting_type import Setting

# Of data sets whose files and columns are known; text/known_tasks.py describes them.
TASK_NAMES = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "sick_relatedness",
              "sick_entailment", "ag_news", "ag_news_original", "trecqa", "conll2003", "wnut17", "squad",
              "squad2")  # fmt: skip

S = Setting

TASK_SETTINGS: dict[str, Setting] = {
    "name": S(
        "none",
        "known task, whose files, columns and metric --config=finetune:NAME sets; none: one of your own",
        ("none", *TASK_NAMES),
    ),
    "data": S("", "folder that the files of this section are in; empty: the current one"),
    "train": S(
        "",
        "labelled training examples: a .tsv, .csv, .jsonl or .parquet file, or tfds:NAME[:SPLIT]; for tagging also"
        " CoNLL columns, with one word per line",
    ),
    "evaluation": S(
        (),
        "files of evaluation examples, as NAME=FILE, several with commas; a bare FILE is named evaluation",
    ),
    "test": S((), "likewise, but the examples may lack labels: they are predicted at the end of the run"),
    "submission": S(
        False,
        "also predict the test sets of the known task, and write the predictions in its benchmark's format"
        " (submission/NAME.tsv in the work directory); span: write predictions/SET.json and"
        " SET.null_odds.json as SQuAD's scripts read them",
    ),
    "intermediate": S(
        "",
        "task that model.init_from was fine-tuned on before this one, such as mnli: another start is rejected;"
        " empty: any, which the run fills in",
    ),
    "text": S(("sentence",), "column with the text, or two columns for pairs, separated by a comma"),
    "label": S("label", "column with the label"),
    "words": S("", "tagging: column with the words, from 0 in CoNLL columns; empty: the first, or words"),
    "tags": S("", "tagging: column with the tags, -1 is the last of CoNLL columns; empty: the last, or tags"),
    "scheme": S(
        "bio",
        "tagging: how tags spell entities; bio: scored as by conlleval and seqeval, where an I- that continues"
        " nothing begins an entity; iob2: strictly, where only B- does; none: each word counts for itself, such as"
        " parts of speech",
        ("bio", "iob2", "iobes", "none"),
    ),
    "labels": S((), "names of the labels, in the order of the outputs; empty: those of task.train, sorted"),
    "separator": S(",", "what separates the labels of an example with several"),
    "header": S(True, "the files' first line names the columns; otherwise columns are numbered from 0"),
    "bad_rows": S("refuse", "rows with another number of columns than the header", ("refuse", "skip")),
    "truncation": S(
        "longest_first",
        "which text of an example that is too long loses its end: the longer one, or the first or second of a pair",
        ("longest_first", "first", "second", "refuse"),
    ),
    "head": S(
        "auto",
        "head on the encoder, as in that family of Transformers; auto: that of the model's family",
        ("auto", "bert", "roberta", "distilbert", "electra", "modernbert"),
    ),
    "pooling": S(
        "auto",
        "how the states of an example become one vector; auto: as in the head's family, mean in ModernBERT, else"
        " cls, the state of the first token; for embedding, as in init_from if it makes vectors, else mean",
        ("auto", "cls", "mean", "max", "lasttoken"),
    ),
    "dropout": S(None, "dropout of the head; none: model.dropout", kind=float, within="[0,1)"),
    "class_weights": S(
        (), "weights of the labels in the loss, as LABEL=WEIGHT, else 1; balanced: equal totals for all labels"
    ),
    "label_smoothing": S(0.0, "probability that is spread evenly over all classes", within="[0,1)"),
    "r_drop": S(
        0.0,
        "R-Drop: weight of the divergence between two passes with different dropout, the paper's alpha; steps take"
        " twice as long; 0: one pass",
        within=">=0",
    ),
    "delete_words": S(
        0.0,
        "augmentation: probability with which each word of a changed text is deleted (arXiv 1901.11196); 0: never",
        within="[0,1)",
    ),
    "swap_words": S(
        0.0,
        "augmentation: swaps of two words in a changed text, as a fraction of its words, but at least one"
        " (arXiv 1901.11196); 0: none",
        within="[0,1]",
    ),
    "replace_words": S(
        0.0,
        "augmentation: probability with which each word of a changed text is replaced by one that a masked language"
        " model predicts there (arXiv 1805.06201), in at least one place; 0: never",
        within="[0,1)",
    ),
    "replace_model": S(
        "",
        "replace_words: work directory or Hugging Face directory that predicts the words; empty: that of init_from",
    ),
    "replace_copies": S(
        4,
        "replace_words: changed versions of each text, computed before training; epochs draw from them",
        within=">=1",
    ),
    "augmented_share": S(
        0.5,
        "augmentation: fraction of the training examples that are changed, drawn anew in each epoch, each in one of"
        " the ways that are on; the others stay as they are",
        within="(0,1]",
    ),
    "teacher": S(
        "",
        "distillation: work directory or Hugging Face directory of a fine-tuned model whose answers are learned"
        " beside the labels; it reads the texts with its own vocabulary",
    ),
    "teacher_share": S(
        0.5, "share of the teacher's answers in the loss; that of the labels is the rest", within="[0,1]"
    ),
    "teacher_temperature": S(2.0, "temperature at which both models' probabilities are compared", within=">0"),
    "teacher_states": S(
        0.0,
        "weight of the distance to the teacher's pooled states, or if they are wider to their principal components",
        within=">=0",
    ),
    "stride": S(
        0,
        "span: tokens from the begin of a window over a long context to that of the next, at most the window's"
        " length; 0: half a window",
        within=">=0",
    ),
    "misplaced": S(
        0.05, "span: largest share of answers that may be elsewhere than their answer_start says", within="[0,1)"
    ),
    "answer_tokens": S(30, "span: longest answer that is predicted, in tokens", within=">=1"),
    "n_best": S(5, "span: answers that predictions list for each question", within=">=1"),
    "null_threshold": S(
        None,
        "span: a question is left unanswered if the score of no answer exceeds that of the best answer by more;"
        " none: fitted on the selecting set, if it has questions without an answer",
        kind=float,
        within="finite",
    ),
    "segmentation": S(
        "auto",
        "span: units of F1; characters: each Chinese, Japanese or Thai character is a word; auto: by the script of"
        " most answers",
        ("auto", "words", "characters"),
    ),
    "metric": S("", "metric that selects the best checkpoint; empty: the usual one of train.objective"),
    "template": S(
        "",
        "template: text with columns of the files in braces and one mask, such as '{sentence} It was [MASK].'; it"
        " replaces task.text",
    ),
    "label_words": S(
        (),
        "template: words of the labels, one token each, as LABEL=WORD or LABEL=WORD/WORD; empty: the labels' own names",
    ),
    "softmax": S(
        "labels",
        "template: what the loss compares the words of the right label with: those of the other labels, or the"
        " whole vocabulary (arXiv 2502.03793)",
        ("labels", "vocabulary"),
    ),
    "choices": S((), "choice: columns with the texts to choose from, separated by commas"),
    "negatives": S((), "embedding: columns with texts that do not belong to the first text of the row"),
    "loss": S(
        "contrastive",
        "embedding: contrastive: the two texts of a row belong together, and the other texts of the batch do not;"
        " cosent, cosine_mse: task.label says how similar they are, and the loss compares the order, or the values",
        ("contrastive", "cosent", "cosine_mse"),
    ),
    "temperature": S(0.05, "embedding: what cosines are divided by in the contrastive and cosent loss", within=">0"),
    "symmetric": S(True, "embedding: the contrastive loss also compares each second text with all first texts"),
    "dimensions": S(
        (),
        "embedding: first dimensions of a vector that must be a good vector too, such as 256,64 (Matryoshka)",
        item=int,
    ),
    "query_prompt": S("", "embedding: text before the first text of a row"),
    "document_prompt": S("", "embedding: text before the other texts of a row"),
    "score_range": S(
        (),
        "embedding: lowest and highest value of task.label, which cosine_mse maps to 0 and 1; empty: values are"
        " cosines",
        item=float,
    ),
}
