# Completes the command line of jaxlm in bash and zsh. Written by scripts/completion.

# Sets `word` to the last word of a line, and `list` to all that may stand in its place: none for a path or a number.
_jaxlm_list() {
  word=${1##*[[:space:]]} list=
  local before=${1%"$word"}
  local verb=${before#*[[:space:]]}
  verb=${verb#"${verb%%[![:space:]]*}"}
  verb=${verb%%[[:space:]]*}
  local settings="--config.data.path= --config.data.weights= --config.data.format= --config.data.document= --config.data.field= --config.data.encoding= --config.data.held_out= --config.data.held_out_fraction= --config.data.deduplicate= --config.data.max_document_characters= --config.data.max_megabytes= --config.data.sequence_length= --config.data.prepend_begin= --config.data.shard_bytes= --config.data.cache= --config.data.workers= --config.data.prefetch= --config.tokenizer.path= --config.tokenizer.add= --config.tokenizer.algorithm= --config.tokenizer.vocab_size= --config.tokenizer.lower_case= --config.tokenizer.character_coverage= --config.tokenizer.split_han= --config.tokenizer.byte_fallback= --config.tokenizer.training_megabytes= --config.tokenizer.words= --config.model.init_from= --config.model.extend_positions= --config.model.layers= --config.model.width= --config.model.heads= --config.model.feed_forward_width= --config.model.embedding_width= --config.model.vocab_size= --config.model.norm= --config.model.norm_position= --config.model.norm_epsilon= --config.model.norm_bias= --config.model.attention_bias= --config.model.feed_forward_bias= --config.model.first_norm= --config.model.embedding_norm= --config.model.activation= --config.model.positions= --config.model.max_positions= --config.model.position_offset= --config.model.rotary_base= --config.model.local_rotary_base= --config.model.layer_pattern= --config.model.window= --config.model.value_residual= --config.model.token_types= --config.model.tied_output= --config.model.output_bias= --config.model.output_bias_from_frequencies= --config.model.head_transform= --config.model.head_bias= --config.model.head_activation= --config.model.dropout= --config.model.attention_dropout= --config.model.initialization= --config.model.initialization_std= --config.masking.scheme= --config.masking.rate= --config.masking.final_rate= --config.masking.mask_share= --config.masking.random_share= --config.masking.span_p= --config.masking.span_max= --config.train.objective= --config.train.steps= --config.train.epochs= --config.train.tokens= --config.train.minutes= --config.train.count_compilation= --config.train.batch_size= --config.train.accumulate= --config.train.phases= --config.train.seed= --config.train.init_seed= --config.train.data_seed= --config.train.mask_seed= --config.train.compute_dtype= --config.train.deterministic= --config.train.attention= --config.train.rematerialise= --config.train.logits_megabytes= --config.task.train= --config.task.evaluation= --config.task.text= --config.task.label= --config.task.labels= --config.task.header= --config.task.pooling= --config.task.metric= --config.optimizer.name= --config.optimizer.learning_rate= --config.optimizer.muon_learning_rate= --config.optimizer.muon_momentum= --config.optimizer.beta1= --config.optimizer.beta2= --config.optimizer.epsilon= --config.optimizer.weight_decay= --config.optimizer.decay_mask= --config.optimizer.rate_multipliers= --config.optimizer.layer_decay= --config.optimizer.freeze= --config.optimizer.clip_norm= --config.schedule.name= --config.schedule.warmup= --config.schedule.decay_steps= --config.schedule.decay_shape= --config.schedule.final= --config.mesh.slices= --config.mesh.data= --config.mesh.fsdp= --config.mesh.tensor= --config.mesh.coordinator= --config.mesh.processes= --config.mesh.process_id= --config.mesh.heartbeat_seconds= --config.checkpoint.every= --config.checkpoint.keep= --config.checkpoint.keep_best= --config.evaluation.every= --config.evaluation.rows= --config.evaluation.batch_size= --config.logging.every= --config.logging.tensorboard= --config.logging.curve="
  local values="--config=bert_base --config=bert_large --config=bert_wwm_zh --config=classify --config=continue --config=encoder_1b --config=ettin_17m --config=mini --config=modernbert_base --config=modernbert_large --config=mosaicbert_base --config=quickstart --config=roberta_base --config=speedrun --config.data.format=auto --config.data.format=text --config.data.format=jsonl --config.data.format=csv --config.data.format=tsv --config.data.format=parquet --config.data.document=file --config.data.document=paragraph --config.data.document=line --config.data.deduplicate=true --config.data.deduplicate=false --config.data.prepend_begin=true --config.data.prepend_begin=false --config.tokenizer.algorithm=unigram --config.tokenizer.algorithm=bpe --config.tokenizer.lower_case=true --config.tokenizer.lower_case=false --config.tokenizer.split_han=true --config.tokenizer.split_han=false --config.tokenizer.byte_fallback=true --config.tokenizer.byte_fallback=false --config.tokenizer.words=unicode --config.tokenizer.words=jieba --config.tokenizer.words=icu --config.tokenizer.words=spaces --config.model.extend_positions=refuse --config.model.extend_positions=repeat --config.model.extend_positions=interpolate --config.model.norm=layer_norm --config.model.norm=rms_norm --config.model.norm_position=pre --config.model.norm_position=post --config.model.norm_bias=true --config.model.norm_bias=false --config.model.attention_bias=true --config.model.attention_bias=false --config.model.feed_forward_bias=true --config.model.feed_forward_bias=false --config.model.first_norm=true --config.model.first_norm=false --config.model.embedding_norm=true --config.model.embedding_norm=false --config.model.activation=gelu --config.model.activation=gelu_tanh --config.model.activation=relu --config.model.activation=relu_squared --config.model.activation=silu --config.model.activation=geglu --config.model.activation=swiglu --config.model.activation=reglu --config.model.positions=learned --config.model.positions=rotary --config.model.positions=alibi --config.model.positions=none --config.model.tied_output=true --config.model.tied_output=false --config.model.output_bias=true --config.model.output_bias=false --config.model.output_bias_from_frequencies=true --config.model.output_bias_from_frequencies=false --config.model.head_transform=true --config.model.head_transform=false --config.model.head_bias=true --config.model.head_bias=false --config.model.head_activation=gelu --config.model.head_activation=gelu_tanh --config.model.head_activation=relu --config.model.head_activation=relu_squared --config.model.head_activation=silu --config.model.head_activation=none --config.model.initialization=normal --config.model.initialization=depth_scaled --config.model.initialization=zero_output --config.masking.scheme=token --config.masking.scheme=whole_word --config.masking.scheme=span --config.train.objective=masked --config.train.objective=causal --config.train.objective=classify --config.train.count_compilation=true --config.train.count_compilation=false --config.train.compute_dtype=auto --config.train.compute_dtype=float32 --config.train.compute_dtype=bfloat16 --config.train.deterministic=true --config.train.deterministic=false --config.train.attention=auto --config.train.attention=xla --config.train.attention=flash --config.train.attention=splash --config.train.rematerialise=none --config.train.rematerialise=attention --config.train.rematerialise=dots --config.train.rematerialise=full --config.task.header=true --config.task.header=false --config.task.pooling=mean --config.task.pooling=cls --config.task.pooling=max --config.task.metric=accuracy --config.task.metric=loss --config.optimizer.name=adamw --config.optimizer.name=lamb --config.optimizer.name=muon --config.schedule.name=linear --config.schedule.name=cosine --config.schedule.name=wsd --config.schedule.name=constant --config.schedule.decay_shape=linear --config.schedule.decay_shape=1-sqrt --config.checkpoint.keep_best=true --config.checkpoint.keep_best=false --config.logging.tensorboard=true --config.logging.tensorboard=false --config.logging.curve=true --config.logging.curve=false"
  case $verb in
    "") list="train prepare config fill-mask embed score evaluate export bench plan completion --help --version" ;;
    train) if [[ $word == *=* ]]; then list="$values"; else list="--help --config= --workdir= $settings"; fi ;;
    prepare) if [[ $word == *=* ]]; then list="--runner=local --runner=beam $values"; else list="--help --config= --output= --runner= --json $settings"; fi ;;
    config) if [[ $word == *=* ]]; then list="$values"; else list="--help --config= --json data tokenizer model masking train task optimizer schedule mesh checkpoint evaluation logging $settings"; fi ;;
    fill-mask) if [[ $word == *=* ]]; then list=""; else list="--help --model= --step= --top= --targets= --json"; fi ;;
    embed) if [[ $word == *=* ]]; then list="--format=auto --format=text --format=jsonl --format=csv --format=tsv --format=parquet --pooling=mean --pooling=cls --pooling=max --too-long=truncate --too-long=refuse --compute-dtype=float32 --compute-dtype=bfloat16 --compute-dtype=auto"; else list="--help --model= --step= --input= --output= --format= --field= --encoding= --pooling= --normalise --layers= --too-long= --batch-tokens= --compute-dtype= --json"; fi ;;
    score) if [[ $word == *=* ]]; then list="--variant=within-word --variant=original --format=auto --format=text --format=jsonl --format=csv --format=tsv --format=parquet"; else list="--help --model= --step= --variant= --input= --format= --field= --encoding= --json"; fi ;;
    evaluate) if [[ $word == *=* ]]; then list="--data.format=auto --data.format=text --data.format=jsonl --data.format=csv --data.format=tsv --data.format=parquet --data.document=file --data.document=paragraph --data.document=line"; else list="--help --model= --step= --whole-documents --rows= --json --data.path= --data.weights= --data.format= --data.document= --data.field= --data.encoding= --data.held_out= --data.held_out_fraction= --data.deduplicate= --data.max_document_characters= --data.max_megabytes= --data.sequence_length= --data.prepend_begin= --data.shard_bytes= --data.cache= --data.workers= --data.prefetch="; fi ;;
    export) if [[ $word == *=* ]]; then list=""; else list="--help --model= --step= --to= --family= --dtype= --json"; fi ;;
    bench) if [[ $word == *=* ]]; then list="$values"; else list="--help --config= --shape= --vocab= --batch= --length= --documents= --padding= --steps= --warmup= --profile= --no-cache --device-only --json $settings"; fi ;;
    plan) if [[ $word == *=* ]]; then list="$values"; else list="--help --config= --mesh= --chip= --mfu= --phase= --formula --json $settings"; fi ;;
    completion) if [[ $word == *=* ]]; then list=""; else list="--help"; fi ;;
  esac
}

_jaxlm() {
  local word list
  _jaxlm_list "${COMP_LINE:0:$COMP_POINT}"
  COMPREPLY=($(compgen -W "$list" -- "$word"))
  if [[ ${COMPREPLY[*]} == *= ]] && type compopt >/dev/null 2>&1; then
    compopt -o nospace
  fi
  local kept=${word%"${word##*[=:]}"} # bash splits words at = and :, and replaces the last part only
  COMPREPLY=("${COMPREPLY[@]#"$kept"}")
}

_jaxlm_zsh() {
  local word list
  _jaxlm_list "${(j: :)words[1,CURRENT-1]} $PREFIX"
  local -a offered=(${(M)${=list}:#${(b)word}*})
  if (( $#offered )); then
    compadd -S "" -- ${(M)offered:#*=}
    compadd -- ${offered:#*=}
    return 0
  fi
  compset -P "*[=,]"
  _files
}

if [[ -n ${ZSH_VERSION-} ]]; then
  if ! type compdef >/dev/null 2>&1; then
    autoload -Uz compinit && compinit
  fi
  compdef _jaxlm_zsh jaxlm
else
  complete -o default -F _jaxlm jaxlm
fi
