# An image with jaxlm and its recipes, for scripts/kubernetes.yaml or a single machine. Not yet built.
#
# usage:  docker build --build-arg EXTRA=gpu -t jaxlm .      # EXTRA: gpu, tpu, or empty for CPUs
#         docker run --gpus=all -v "$PWD/data:/data" jaxlm train --config=configs/bert_base.py \
#           --workdir=/data/runs/base --config.data.path='/data/text/*.txt' --config.data.cache=/data/stores
FROM python:3.13-slim
ARG EXTRA=
WORKDIR /jaxlm
COPY pyproject.toml README.md LICENSE ./
COPY jaxlm jaxlm
COPY configs configs
RUN pip install --no-cache-dir ".${EXTRA:+[$EXTRA]}"
ENTRYPOINT ["jaxlm"]
