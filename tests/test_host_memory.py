"""Memory that is freed and taken again: whether the system has to bring its pages anew."""

import platform
import subprocess
import sys

import pytest

from sora_jax import host_memory

PROGRAM = """
import resource
import threading
import numpy as np
from sora_jax import host_memory

host_memory._ACCELERATORS = ()  # whatever this machine has
if {keep}:
    host_memory.keep_freed_memory()

def touch():  # 40 MB, more than glibc keeps by itself
    np.ones(5_000_000)

def round():
    touch()
    thread = threading.Thread(target=touch)
    thread.start()
    thread.join()

round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    program = PROGRAM.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return int(done.stdout)


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")


@needs_glibc
def test_pages_stay_with_the_process():
    taken_anew = 10 * 40_000_000 // 2**21  # in the largest of pages
    assert faults(keep=False) > taken_anew
    assert faults(keep=True) < taken_anew


GROWS = """
import time
import numpy as np
from sora_jax import host_memory

host_memory._ACCELERATORS = ()
host_memory.keep_freed_memory()
parts = [np.ones(250_000) for _ in range(200)]  # 400 MB
after = np.ones(250_000)
time.sleep(0.5)
before = host_memory.resident_memory()
del parts
time.sleep(0.5)
print((host_memory.resident_memory() - before) >> 20)
whole = np.ones(60_000_000)  # 480 MB, more than the hole
until = time.monotonic() + 10
while host_memory.resident_memory() > before + 2**28 and time.monotonic() < until:
    time.sleep(0.1)
print((host_memory.resident_memory() - before) >> 20)
"""


@needs_glibc
def test_what_waits_in_vain_goes_back():
    done = subprocess.run([sys.executable, "-c", GROWS], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    kept, grown = map(int, done.stdout.split())  # MiB
    assert abs(kept) < 10
    assert grown < 150  # and 457 with the hole


@needs_glibc
def test_machines_with_an_accelerator_keep_to_the_usual_way(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory, "Path", lambda _: tmp_path)
    asked = []
    monkeypatch.setattr(host_memory.ctypes, "CDLL", asked.append)
    (tmp_path / "vfio").mkdir()
    (tmp_path / "vfio" / "vfio").touch()  # is there without any device
    host_memory.keep_freed_memory()
    assert asked
    asked.clear()
    (tmp_path / "vfio" / "0").touch()
    host_memory.keep_freed_memory()
    assert not asked
