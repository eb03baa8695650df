"""Holds 20,000 threads in 20 processes, 200,000 open files and 70,000 connections at once, and reports each."""
import _thread, os, socket, sys, time

PROCESSES, THREADS, FILES, PORTS = 20, 1000, 200_000, 35_000


def process(ready, release):
    try:
        _thread.stack_size(64 << 10)
        lock = _thread.allocate_lock()
        lock.acquire()
        for _ in range(THREADS):
            _thread.start_new_thread(lock.acquire, ())
        os.write(ready, b"y")
    except Exception as error:
        print(f"threads: {error}", file=sys.stderr)
        os.write(ready, b"n")
    os.read(release, 1)
    os._exit(0)


def start_threads():
    """Returns what ends them."""
    ready, ready_inside = os.pipe()
    release_inside, release = os.pipe()
    for _ in range(PROCESSES):
        if os.fork() == 0:
            os.close(release)
            process(ready_inside, release_inside)
        if os.read(ready, 1) != b"y":
            sys.exit("a process does not have its threads")
        # Memory is plugged as it is used: this is about limits, not about how fast memory comes.
        time.sleep(1)
    return release


def open_files():
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(FILES)]


def connect():
    """Datagrams without an answer: the guest's kernel tracks each pair of ports."""
    with open("/proc/net/route") as routes:
        default = next(fields[2] for fields in map(str.split, routes) if fields[1] == "00000000")
    gateway = socket.inet_ntoa(bytes.fromhex(default)[::-1])
    for _ in range(2):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in range(1, PORTS + 1):
                sender.sendto(b"", (gateway, port))


def hold(what):
    """Says what is held, until a line comes."""
    print(what, flush=True)
    sys.stdin.readline()


release = start_threads()
hold("threads")
files = open_files()
hold("files")
connect()
hold("connections")
