"""Joining: only where there are several hosts, and wrong flags stop at once with the remedy."""

import socket

import jax
import pytest

from sora_jax.training.multihost import is_pod, join

# What the metadata server of a TPU VM says, by key.
ONE = {"worker-network-endpoints": "10.0.0.2", "tpu-env": "ACCELERATOR_TYPE: 'v5e-8'\n"}
FOUR = {**ONE, "worker-network-endpoints": "10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5"}
OLD = {**ONE, "worker-network-endpoints": "unknown:unknown:10.0.0.2,unknown:unknown:10.0.0.3"}
SLICES = {**ONE, "tpu-env": "ZONE: 'a'\nMEGASCALE_NUM_SLICES: '2'\n"}


@pytest.mark.parametrize(
    ("environment", "metadata", "pod"),
    [
        ({}, ONE, False),
        ({}, FOUR, True),
        ({}, OLD, True),
        ({}, SLICES, True),
        ({}, None, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None, False),
        ({"TPU_WORKER_HOSTNAMES": "a-0.a,a-1.a"}, None, True),
        ({"TPU_WORKER_HOSTNAMES": "a-0.a", "MEGASCALE_NUM_SLICES": "1"}, None, False),
        ({"TPU_WORKER_HOSTNAMES": "a-0.a", "MEGASCALE_NUM_SLICES": "2"}, None, True),
        ({"TPU_PROCESS_ADDRESSES": "10.0.0.2:8476,10.0.0.3:8476"}, None, True),
    ],
)
def test_a_slice_of_several_hosts_is_known_as_one(environment, metadata, pod):
    def read(key):
        if metadata is None:
            raise OSError("no such host")
        return metadata[key]

    assert is_pod(environment, True, read) == pod


def test_without_tpus_nobody_is_asked():
    def read(key):
        raise AssertionError("the network was asked")

    assert not is_pod({"TPU_WORKER_HOSTNAMES": "a,b"}, False, read)


def test_a_single_machine_joins_nothing():
    join(None, None, None, {})
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("address", "count", "index", "message"),
    [
        (None, 2, None, "--num_processes=2 needs --coordinator_address and --process_id beside"),
        ("a:1", 2, None, "--coordinator_address=a:1, --num_processes=2 needs --process_id"),
        (None, None, 0, "--process_id=0 needs --coordinator_address and --num_processes"),
        ("somewhere", 2, 0, "--coordinator_address=somewhere is not HOST:PORT"),
        ("a:port", 2, 0, "--coordinator_address=a:port is not HOST:PORT"),
        ("a:70000", 2, 0, "--coordinator_address=a:70000 is not HOST:PORT"),
        (":8476", 2, 0, "--coordinator_address=:8476 is not HOST:PORT"),
        ("a:1", 0, 0, "--num_processes=0 must be at least 1"),
        ("a:1", 2, 2, "--process_id=2 must be 0 to 1, as --num_processes=2"),
        ("a:1", 2, -1, "--process_id=-1 must be 0 to 1"),
    ],
)
def test_flags_that_make_no_sense_are_refused(address, count, index, message):
    with pytest.raises(ValueError, match=message):
        join(address, count, index, {})
    assert not jax.distributed.is_initialized()


def test_a_port_that_is_taken_is_said():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"cannot meet at --coordinator_address={address} .*"):
            join(address, 2, 0, {})
    assert not jax.distributed.is_initialized()
