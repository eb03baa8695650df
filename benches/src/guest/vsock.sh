# The host does the work. The guest only listens.
/tmp/helper guest serve --vsock 5000 &
sleep "$REST"
say ready
while :; do sleep 1000; done
