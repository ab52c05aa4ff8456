#!/bin/sh
# Eight GPUs of one machine: one process drives them all, and nothing has to be said about it.
if [ "$1" != processes ]; then
  exec azjax train ant --lanes 32768 --steps 200000000 --run runs/ant-8gpu
fi

# gpus.sh processes: the same as eight processes, one for each GPU, which is what a scheduler would start.
for i in 0 1 2 3 4 5 6 7; do
  CUDA_VISIBLE_DEVICES=$i azjax train ant --lanes 32768 --steps 200000000 --run runs/ant-8processes \
    --coordinator 127.0.0.1:12345 --processes 8 --process $i &
done
wait
