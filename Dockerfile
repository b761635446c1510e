# docker build -t spq-graph .
# docker run --rm -v "$PWD:/work" spq-graph quantize model.gguf -o out --text heldout.txt
#
# torch as the default index has it brings gigabytes of CUDA libraries that nothing here needs. pip's own settings say
# where to take it from: --build-arg PIP_EXTRA_INDEX_URL=, of PyTorch's CPU wheel index.
ARG PYTHON=3.11

FROM python:${PYTHON} AS wheel
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:${PYTHON}-slim
ARG EXTRAS=cpu,export,gguf,hub,data
ARG PIP_EXTRA_INDEX_URL=
COPY constraints.txt /tmp/
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /wheels/spq_graph-*.whl)[${EXTRAS}]" \
    && spq-graph doctor
# What is written into a mounted folder belongs to whoever `docker run --user` names.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["spq-graph"]
CMD ["--help"]
