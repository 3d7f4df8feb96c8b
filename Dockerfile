# docker build -t souping . && docker run --rm -v "$PWD/outputs:/data/outputs" souping
# The main job on the embedded models, without a GPU. Your own: docker run ... souping pool.candidates='[...]' benchmark.path=...
FROM python:3.11-slim

RUN useradd --create-home cook
WORKDIR /opt/souping
COPY setup.py pyproject.toml README.md LICENSE ./
COPY conf conf
COPY souping souping
RUN pip install --no-cache-dir .

WORKDIR /data
RUN chown cook /data
USER cook
ENV OMP_NUM_THREADS=1 WANDB_MODE=offline PYTHONUNBUFFERED=1
ENTRYPOINT ["python", "-m", "souping"]
CMD ["+experiment=bfcl"]
