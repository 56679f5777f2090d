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
    "data": S("", "folder with the files of this section; empty: the current one"),
    "train": S(
        "",
        "labelled training examples: a .tsv, .csv, .jsonl or .parquet file, or tfds:NAME[:SPLIT]; for tagging also"
        " CoNLL columns, with one word per line",
    ),
    "evaluation": S(
        (),
        "files of evaluation examples, as NAME=FILE, several with commas; a bare FILE is named evaluation",
    ),
    "test": S((), "files of test examples, likewise; they may lack labels, and are predicted at the end of the run"),
    "submission": S(
        False,
        "also predict the test sets of the known task, and write the predictions in the format of its"
        " benchmark (submission/NAME.tsv in the work directory); span: write predictions/SET.json and"
        " SET.null_odds.json, which SQuAD's scripts read",
    ),
    "intermediate": S(
        "",
        "task that model.init_from must have been fine-tuned on, such as mnli; empty: any or none, and the run notes"
        " the one that it finds",
    ),
    "text": S(("sentence",), "column with the text, or two columns for pairs, separated by a comma"),
    "label": S("label", "column with the label"),
    "words": S(
        "", "tagging: column with the words, in CoNLL files a number from 0; empty: the first there, otherwise words"
    ),
    "tags": S("", "tagging: column with the tags, in CoNLL files a number; empty: the last there (-1), otherwise tags"),
    "scheme": S(
        "bio",
        "tagging: scheme of the tags; bio: an I- tag that continues no entity begins one, as in conlleval and seqeval;"
        " iob2: only a B- tag begins an entity; iobes: an E- tag ends an entity, an S- tag is one of a single word;"
        " none: each word is scored by itself, as in part-of-speech tagging",
        ("bio", "iob2", "iobes", "none"),
    ),
    "labels": S((), "names of the labels, in the order of the outputs; empty: those of task.train, sorted"),
    "separator": S(",", "multi_label: separator of the labels in task.label"),
    "header": S(True, "the first line of a file names the columns; otherwise columns are numbered from 0"),
    "bad_rows": S(
        "refuse", "invalid rows, such as those with too few columns: stop, or skip and count them", ("refuse", "skip")
    ),
    "truncation": S(
        "longest_first",
        "text that is truncated in an example that is too long: the longer one, or the first or second of a pair;"
        " refuse: stop instead",
        ("longest_first", "first", "second", "refuse"),
    ),
    "head": S(
        "auto",
        "architecture of the head, that of a family of Transformers; auto: the family of the model",
        ("auto", "bert", "roberta", "distilbert", "electra", "modernbert"),
    ),
    "pooling": S(
        "auto",
        "how the states of an example become one vector; cls: the state of the first token; auto: as in the family of"
        " the head, mean in ModernBERT and cls in the others; for embedding, as in init_from if it is an embedding"
        " model, otherwise mean",
        ("auto", "cls", "mean", "max", "lasttoken"),
    ),
    "dropout": S(None, "dropout of the head; none: model.dropout", kind=float, within="[0,1)"),
    "class_weights": S(
        (),
        "weights of the labels in the loss, as LABEL=WEIGHT, otherwise 1; balanced: the same total weight for each"
        " label",
    ),
    "label_smoothing": S(0.0, "probability that is spread evenly over all classes", within="[0,1)"),
    "r_drop": S(
        0.0,
        "R-Drop (arXiv 2106.14448): weight alpha of the divergence between two passes with different dropout; steps"
        " take twice as long; 0: one pass",
        within=">=0",
    ),
    "delete_words": S(
        0.0,
        "augmentation: probability of deleting each word of a changed text (arXiv 1901.11196); 0: none is deleted",
        within="[0,1)",
    ),
    "swap_words": S(
        0.0,
        "augmentation: number of swaps of two words in a changed text, as a fraction of its words; at least one swap"
        " (arXiv 1901.11196); 0: none",
        within="[0,1]",
    ),
    "replace_words": S(
        0.0,
        "augmentation: probability of replacing each word of a changed text by a prediction of a masked language model"
        " (arXiv 1805.06201); at least one word is; 0: none",
        within="[0,1)",
    ),
    "replace_model": S(
        "",
        "replace_words: work directory or Hugging Face directory of the masked language model; empty: init_from",
    ),
    "replace_copies": S(
        4,
        "replace_words: changed versions of each text that are computed before training; an epoch draws one of them",
        within=">=1",
    ),
    "augmented_share": S(
        0.5,
        "augmentation: fraction of the training examples that is changed in an epoch, drawn anew in each; an example is"
        " changed in one way: by delete_words, swap_words or replace_words",
        within="(0,1]",
    ),
    "teacher": S(
        "",
        "distillation: work directory or Hugging Face directory of a fine-tuned model whose outputs are learned"
        " beside the labels; it reads the texts with its own vocabulary",
    ),
    "teacher_share": S(
        0.5, "distillation: weight of the teacher's outputs in the loss; that of the labels is the rest", within="[0,1]"
    ),
    "teacher_temperature": S(
        2.0, "distillation: temperature at which both models' probabilities are compared", within=">0"
    ),
    "teacher_states": S(
        0.0,
        "distillation: weight of the distance to the teacher's pooled states; those of a wider teacher are reduced to"
        " their principal components",
        within=">=0",
    ),
    "stride": S(
        0,
        "span: tokens between the starts of successive windows over a long context, at most the length of a window; 0:"
        " half a window",
        within=">=0",
    ),
    "misplaced": S(
        0.05, "span: largest fraction of answers that may not be where their answer_start says", within="[0,1)"
    ),
    "answer_tokens": S(30, "span: maximum length of a predicted answer, in tokens", within=">=1"),
    "n_best": S(5, "span: number of answers that predictions list for each question", within=">=1"),
    "null_threshold": S(
        None,
        "span: a question is left unanswered if the null score exceeds the score of the best answer by more than this;"
        " none: fitted on the selecting set, if it has questions without an answer",
        kind=float,
        within="finite",
    ),
    "segmentation": S(
        "auto",
        "span: what F1 counts; characters: each Chinese, Japanese or Thai character is a word; auto: by the script of"
        " most answers",
        ("auto", "words", "characters"),
    ),
    "metric": S("", "metric that selects the best checkpoint; empty: the default of train.objective"),
    "template": S(
        "",
        "template: text with columns of the files in braces and one mask, such as '{sentence} It was [MASK].'; it"
        " replaces task.text",
    ),
    "label_words": S(
        (),
        "template: words that stand for the labels, one token each, as LABEL=WORD or LABEL=WORD/WORD; empty: the names"
        " of the labels",
    ),
    "softmax": S(
        "labels",
        "template: the loss is the cross entropy over the words of the labels, or over the whole vocabulary (arXiv"
        " 2502.03793)",
        ("labels", "vocabulary"),
    ),
    "choices": S((), "choice: columns with the texts to choose from, separated by commas"),
    "negatives": S((), "embedding: columns with hard negatives: texts that do not belong to the first text of the row"),
    "loss": S(
        "contrastive",
        "embedding: contrastive: the two texts of a row belong together, and the other texts of the batch do not;"
        " cosent, cosine_mse: task.label is the similarity of the two texts, and the cosines learn its order, or its"
        " values",
        ("contrastive", "cosent", "cosine_mse"),
    ),
    "temperature": S(0.05, "embedding: divisor of the cosines in the contrastive and cosent losses", within=">0"),
    "symmetric": S(True, "embedding: the contrastive loss also compares each second text with all first texts"),
    "dimensions": S(
        (),
        "embedding: numbers of first dimensions that are trained as vectors of their own, such as 256,64 (Matryoshka)",
        item=int,
    ),
    "query_prompt": S("", "embedding: prompt before the first text of a row"),
    "document_prompt": S("", "embedding: prompt before the other texts of a row"),
    "score_range": S(
        (),
        "embedding: lowest and highest value of task.label, which cosine_mse maps to 0 and 1; empty: values are"
        " cosines",
        item=float,
    ),
}
