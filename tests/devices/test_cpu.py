"""Discovery of CPUs, on the /proc and /sys of boards that are not here."""

from __future__ import annotations

import os

import pytest

from edgert.devices import cgroup, cpu
from tests.devices.boards import A55, PI4, PI5, V1, Board, pi


def test_a_raspberry_pi_4_is_one_cluster_without_the_int8_dot_product(tmp_path):
    (device,) = cpu.discover(pi(tmp_path, PI4, "Raspberry Pi 4 Model B Rev 1.5", 1_800_000).root)
    assert (device.id, device.name) == ("cpu:0", "Cortex-A72, Raspberry Pi 4 Model B Rev 1.5")
    assert device.cores == (0, 1, 2, 3)
    assert device.features == ("asimd",)
    assert device.memory_bytes == 8 << 30
    assert device.attributes["clock_mhz"] == "1800"


def test_a_raspberry_pi_5_has_float16_and_the_int8_dot_product(tmp_path):
    (device,) = cpu.discover(pi(tmp_path, PI5, "Raspberry Pi 5 Model B Rev 1.0", 2_400_000).root)
    assert device.name == "Cortex-A76, Raspberry Pi 5 Model B Rev 1.0"
    assert device.features == ("asimd", "asimdhp", "asimddp")


def test_an_rk3588s_big_and_little_cores_are_two_devices_the_big_first(tmp_path):
    board = Board(tmp_path).arm_info([A55] * 4 + [PI5] * 4, "Radxa ROCK 5B").allow("0-7", "0-7").memory(16 << 20)
    for number in range(4):
        board.cpu(number, clock_khz=1_800_000, capacity=530)
    for number in range(4, 8):
        # The two pairs of big cores are binned apart: 2.256 and 2.304 GHz are one speed.
        board.cpu(number, clock_khz=2_256_000 if number < 6 else 2_304_000, capacity=1024 if number > 5 else 1003)
    big, little = cpu.discover(tmp_path)
    assert (big.id, big.name, big.cores) == ("cpu:0", "Cortex-A76, Radxa ROCK 5B", (4, 5, 6, 7))
    assert (little.id, little.name, little.cores) == ("cpu:1", "Cortex-A55, Radxa ROCK 5B", (0, 1, 2, 3))


def test_equal_cores_at_clearly_different_clocks_are_two_devices(tmp_path):
    """Two clusters of Cortex-A53, as in many cheap octa-cores: part and capacity cannot tell them apart."""
    core = ("0x41", "0xd03", "fp asimd")
    board = Board(tmp_path).arm_info([core] * 8, "Octa").allow("0-7", "0-7")
    for number in range(8):
        board.cpu(number, clock_khz=1_500_000 if number < 4 else 2_000_000)
    assert [device.cores for device in cpu.discover(tmp_path)] == [(4, 5, 6, 7), (0, 1, 2, 3)]


def test_a_hybrid_laptop_has_performance_and_efficiency_cores_and_smt_siblings_come_last(tmp_path):
    board = (
        Board(tmp_path).x86_info(16, "12th Gen Intel(R) Core(TM) i7-1260P", "avx2 fma avx_vnni").allow("0-15", "0-15")
    )
    board.write("sys/devices/cpu_core/cpus", "0-7\n").write("sys/devices/cpu_atom/cpus", "8-15\n")
    for number in range(8):
        first = number - number % 2
        board.cpu(number, siblings=f"{first}-{first + 1}", clock_khz=4_700_000)
    for number in range(8, 16):
        board.cpu(number, clock_khz=3_400_000)
    fast, slow = cpu.discover(tmp_path)
    assert fast.name == "12th Gen Intel(R) Core(TM) i7-1260P (performance cores)"
    assert fast.cores == (0, 2, 4, 6, 1, 3, 5, 7)
    assert fast.attributes["physical_cores"] == "4"
    assert slow.name == "12th Gen Intel(R) Core(TM) i7-1260P (efficiency cores)"
    assert slow.cores == (8, 9, 10, 11, 12, 13, 14, 15)
    assert fast.features == ("fma", "avx2", "avx_vnni")


def test_preferred_cores_of_one_die_are_no_cluster_of_their_own(tmp_path):
    board = Board(tmp_path).x86_info(8, "AMD Ryzen 7 7700X 8-Core Processor").allow("0-7", "0-7")
    for number in range(8):
        board.cpu(number, clock_khz=5_573_000 - 40_000 * number, capacity=1024)
    (device,) = cpu.discover(tmp_path)
    assert device.cores == tuple(range(8))


def test_dense_cores_are_a_cluster_though_the_kernel_gives_all_the_same_capacity(tmp_path):
    board = Board(tmp_path).x86_info(12, "AMD Ryzen AI 9 HX 370").allow("0-11", "0-11")
    for number in range(12):
        board.cpu(number, clock_khz=5_157_000 if number < 4 else 3_309_000, capacity=1024)
    assert [len(device.cores) for device in cpu.discover(tmp_path)] == [4, 8]


def test_a_server_of_two_packages_is_one_device_that_says_so(tmp_path):
    board = Board(tmp_path).x86_info(16, "AMD EPYC 9354 32-Core Processor").allow("0-15", "0-15")
    for number in range(16):
        board.cpu(number, siblings=f"{number % 8},{number % 8 + 8}", package=number % 8 // 4)
    (device,) = cpu.discover(tmp_path)
    assert device.cores == tuple(range(16))
    assert (device.attributes["packages"], device.attributes["physical_cores"]) == ("2", "8")


def test_an_arm_server_shows_sve_bf16_and_i8mm(tmp_path):
    Board(tmp_path).arm_info([V1] * 4, "").allow("0-3", "0-3")
    (device,) = cpu.discover(tmp_path)
    assert device.name == "Neoverse-V1"
    assert {"sve", "bf16", "i8mm"} <= set(device.features)


def test_a_32_bit_kernel_writes_what_is_shared_by_all_cores_only_once(tmp_path):
    Board(tmp_path).write(
        "proc/cpuinfo",
        "Processor\t: ARMv7 Processor rev 5 (v7l)\nprocessor\t: 0\nBogoMIPS\t: 38.40\n\nprocessor\t: 1\n"
        "BogoMIPS\t: 38.40\n\nFeatures\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4\n"
        "CPU implementer\t: 0x41\nCPU architecture: 7\nCPU variant\t: 0x0\nCPU part\t: 0xc07\nCPU revision\t: 5\n\n"
        "Hardware\t: BCM2835\nRevision\t: a01041\n",
    ).allow("0-1", "0-1").memory(1 << 20)
    (device,) = cpu.discover(tmp_path)
    assert (device.name, device.cores, device.features) == ("Cortex-A7", (0, 1), ("neon", "vfpv4"))


def test_an_unknown_arm_core_is_shown_by_its_numbers(tmp_path):
    Board(tmp_path).arm_info([("0x99", "0x123", "asimd")], "").allow("0", "0")
    assert cpu.discover(tmp_path)[0].name == "ARM core 0x99:0x123"


def test_cores_that_affinity_forbids_or_that_are_offline_do_not_count(tmp_path):
    Board(tmp_path).server().allow("2-5,7", "0-4,7")
    assert cpu.discover(tmp_path)[0].cores == (2, 3, 4, 7)


def test_half_a_core_stays_whole_when_its_first_sibling_is_forbidden(tmp_path):
    board = Board(tmp_path).x86_info(4, "Xeon").allow("1-3", "0-3")
    for number in range(4):
        board.cpu(number, siblings=f"{number % 2},{number % 2 + 2}")
    (device,) = cpu.discover(tmp_path)
    assert device.cores == (1, 2, 3), "2 is the one thread left of its core, 3 is the second of core 1"
    assert device.attributes["physical_cores"] == "2"


V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def v2(board: Board, group: str = "/", mount: str = V2_MOUNT) -> Board:
    return board.write("proc/self/cgroup", f"0::{group}\n").write("proc/self/mountinfo", mount)


def test_a_v2_quota_leaves_as_many_cores_as_it_pays_for(tmp_path):
    board = v2(Board(tmp_path).server())
    board.write("sys/fs/cgroup/cpu.max", "250000 100000\n").write("sys/fs/cgroup/memory.max", "1073741824\n")
    (device,) = cpu.discover(tmp_path)
    assert device.cores == (0, 1)
    assert device.attributes["quota"] == "2.5"
    assert device.memory_bytes == 1 << 30


def test_less_than_one_core_of_quota_still_leaves_one(tmp_path):
    v2(Board(tmp_path).server()).write("sys/fs/cgroup/cpu.max", "20000 100000\n")
    assert cpu.discover(tmp_path)[0].cores == (0,)


def test_the_tightest_of_nested_groups_holds(tmp_path):
    board = v2(Board(tmp_path).server(), "/user.slice/app.service")
    board.write("sys/fs/cgroup/user.slice/cpu.max", "300000 100000\n")
    board.write("sys/fs/cgroup/user.slice/memory.max", "max\n")
    board.write("sys/fs/cgroup/user.slice/app.service/cpu.max", "max 100000\n")
    board.write("sys/fs/cgroup/user.slice/app.service/memory.max", "2147483648\n")
    assert cgroup.limits(tmp_path) == cgroup.Limits(3.0, 2 << 30)


def test_a_v1_quota_and_memory_limit_hold(tmp_path):
    board = Board(tmp_path).server().write("proc/self/cgroup", "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n")
    board.write(
        "proc/self/mountinfo",
        "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    )
    board.write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "400000\n")
    board.write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n")
    board.write("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "536870912\n")
    (device,) = cpu.discover(tmp_path)
    assert (device.cores, device.memory_bytes) == ((0, 1, 2, 3), 512 << 20)


def test_v1_without_limits_limits_nothing(tmp_path):
    board = Board(tmp_path).server().write("proc/self/cgroup", "4:memory:/\n3:cpu:/\n")
    board.write(
        "proc/self/mountinfo",
        "31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "32 23 0:28 / /m\\040x rw - cgroup cgroup rw,memory\n",
    )
    board.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n").write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    board.write("m x/memory.limit_in_bytes", "9223372036854771712\n")
    assert cgroup.limits(tmp_path) == cgroup.Limits()


def test_a_container_that_sees_only_its_own_subtree_finds_its_limit_at_the_mount(tmp_path):
    """Docker on v1 without a namespace: the group is /docker/abc, and the mount shows that group as its root."""
    board = Board(tmp_path).write("proc/self/cgroup", "4:memory:/docker/abc\n")
    board.write("proc/self/mountinfo", "32 23 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n")
    board.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n")
    assert cgroup.limits(tmp_path).memory_bytes == 512 << 20


def test_a_group_above_the_namespaces_root_is_read_at_the_mount(tmp_path):
    v2(Board(tmp_path), "/../other").write("sys/fs/cgroup/memory.max", "1048576\n")
    assert cgroup.limits(tmp_path).memory_bytes == 1 << 20


@pytest.mark.parametrize("text", ["", "nonsense", "processor : x\nflags\n: :\n\n\n", "\0\0\xff"])
def test_a_cpuinfo_that_says_nothing_still_gives_one_device(tmp_path, text):
    Board(tmp_path).write("proc/cpuinfo", text).allow("0", "0")
    (device,) = cpu.discover(tmp_path)
    assert device.id == "cpu:0"
    assert device.cores


def test_an_empty_root_gives_one_device():
    (device,) = cpu.discover(cpu.Path("/nonexistent"))
    assert device.cores == tuple(range(os.cpu_count() or 1))


def test_here_the_cores_are_those_that_this_process_may_use():
    cores = [core for device in cpu.discover() for core in device.cores]
    assert cores
    assert set(cores) <= os.sched_getaffinity(0)
