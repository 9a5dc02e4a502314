# docker build -t personalar .
# docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" personalar run +subject=cat
#
# For an NVIDIA GPU, with the torch of PyPI, which contains CUDA:
# docker build -t personalar:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
# docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" -v "$HOME/.cache/huggingface:/cache" \
#   personalar:cuda run +subject=folder subject.path=photos/rex subject.noun=dog model=janus_pro_1b trainer=gpu
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# decoder=compiled and some optimizers of DeepSpeed compile code when they are first used
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/personalar
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt --index-url "${TORCH_INDEX}" torch
COPY . .
RUN pip install --no-cache-dir -c constraints.txt ".[tensorboard,web]"

# Any user id may run it: caches go to folders that everybody may write, and torch asks for a user name.
ENV HF_HOME=/cache HOME=/tmp USER=personalar
RUN mkdir -m 1777 /cache
WORKDIR /work
ENTRYPOINT ["personalar"]
CMD ["--help"]
