#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A wire between two network interfaces of this namespace, slow and lossy as asked: what the kernel's netem does, where there is none.
usage: relay.py INTERFACE INTERFACE; lines on standard input set it:
    delay MS    each way
    loss P      percent of packets
    rate MB     megabytes a second, each way, 0: as fast as it goes; what would wait for more than 50 ms is lost
    cut 0|1     nothing passes at all"""
import heapq
import random
import select
import socket
import sys
import time

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 3


def open_on(interface):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    # Packets keep the notes of segments and checksums that are still to be made; what we send does not come back to us.
    s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    s.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 20)
    s.bind((interface, 0))
    s.setblocking(False)
    return s


class Relay:
    def __init__(self, a, b, rng):
        self.ends = [open_on(a), open_on(b)]
        self.rng = rng
        self.delay, self.loss, self.cut, self.rate = 0.0, 0.0, False, 0.0
        self.free = [0.0, 0.0]
        self.queue, self.count = [], 0

    def command(self, line):
        name, value = line.split()
        if name == 'delay':
            self.delay = float(value) / 1000
        elif name == 'loss':
            self.loss = float(value) / 100
        elif name == 'rate':
            self.rate = float(value) * 1e6
        elif name == 'cut':
            self.cut = value == '1'
        print('ok', flush=True)

    def take(self, i):
        for _ in range(256):
            try:
                packet = self.ends[i].recv(1 << 17)
            except BlockingIOError:
                return
            if self.cut or self.rng.random() < self.loss:
                continue
            due = time.monotonic()
            if self.rate:
                if self.free[i] > due + 0.05:
                    continue
                self.free[i] = due = max(due, self.free[i]) + len(packet) / self.rate
            self.count += 1
            heapq.heappush(self.queue, (due + self.delay, self.count, 1 - i, packet))

    def send_due(self):
        now = time.monotonic()
        while self.queue and self.queue[0][0] <= now:
            _, _, i, packet = heapq.heappop(self.queue)
            try:
                self.ends[i].send(packet)
            except OSError:
                pass  # an interface that is down, a full queue: lost, as on any wire

    def run(self):
        while True:
            wait = max(0, self.queue[0][0] - time.monotonic()) if self.queue else None
            ready = select.select([*self.ends, sys.stdin], [], [], wait)[0]
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                self.command(line)
            for i, end in enumerate(self.ends):
                if end in ready:
                    self.take(i)
            self.send_due()


if __name__ == '__main__':
    wire = Relay(sys.argv[1], sys.argv[2], random.Random(1))
    print('ok', flush=True)
    wire.run()
