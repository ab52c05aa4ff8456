#!/bin/sh
# A TPU pod slice: the same command on every worker. $TPU and $ZONE name the slice; the run's folder must be on storage
# that all workers see.
gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all \
  --command "azjax train ant --lanes 131072 --steps 1000000000 --run /mnt/shared/runs/ant --distributed"
