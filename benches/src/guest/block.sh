# A raw disk without a file system or a cache.
warm_fio
job="--filename=$DISK --ioengine=libaio --direct=1"
# Word splitting is wanted: these are options.
fio_case rand_read_depth1 $job --rw=randread --bs=4k --iodepth=1
fio_case rand_read_depth32 $job --rw=randread --bs=4k --iodepth=32
fio_case rand_write_depth1 $job --rw=randwrite --bs=4k --iodepth=1
fio_case rand_write_depth32 $job --rw=randwrite --bs=4k --iodepth=32
fio_case seq_read $job --rw=read --bs=1M --iodepth=4
fio_case seq_write $job --rw=write --bs=1M --iodepth=4
fio_case fsync $job --rw=randwrite --bs=4k --iodepth=1 --fsync=1
rest_forever
