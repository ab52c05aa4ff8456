#!/bin/sh
#SBATCH --job-name=azjax
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
# SLURM tells every process who it is. Two minutes before the time limit it sends SIGTERM, on which the run is saved and
# ends with code 143; the job then puts itself into the queue again, and the same script goes on with the run.
RUN=runs/ant-$SLURM_JOB_ID
if [ -e "$RUN/config.yaml" ]; then
  srun azjax resume "$RUN" --distributed
else
  srun azjax train ant --lanes 131072 --steps 1000000000 --run "$RUN" --distributed
fi
[ $? -eq 143 ] && scontrol requeue "$SLURM_JOB_ID"
