# docker build -t resnet-jax .                          for CPUs
# docker build -t resnet-jax:cuda --build-arg EXTRA=cuda .
# docker run --rm -it -v "$PWD/runs:/app/runs" resnet-jax train digits
# docker run --rm -it --gpus all --shm-size 1g -v "$PWD/runs:/app/runs" \
#     -v resnet-jax-data:/home/resnet/tensorflow_datasets resnet-jax:cuda train fast
FROM python:3.12-slim

# cpu, cuda or tpu: JAX's wheels bring CUDA, so that the image needs no CUDA of its own.
ARG EXTRA=cpu

RUN useradd --create-home --uid 1000 resnet
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY resnet_jax ./resnet_jax
RUN case "$EXTRA" in \
        cpu) extras=stream ;; \
        cuda|tpu) extras="stream,$EXTRA" ;; \
        *) echo "EXTRA is cpu, cuda or tpu, not $EXTRA" >&2; exit 1 ;; \
    esac \
    && pip install --no-cache-dir ".[$extras]" \
    && rm -rf /src

WORKDIR /app
RUN chown resnet /app
USER resnet
ENTRYPOINT ["resnet-jax"]
CMD ["--help"]
