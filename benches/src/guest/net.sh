ip link set lo up
ip address add "$GUEST_ADDRESS/30" dev eth0
ip link set eth0 up
tool iperf3 -s -p 5201 >/dev/null 2>&1 &
/tmp/helper guest serve --tcp 5000 &
sleep "$REST"
say ready
while :; do sleep 1000; done
