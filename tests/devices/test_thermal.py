"""Heat and throttling, as boards' kernels write them."""

from __future__ import annotations

import pytest

from edgert.devices.thermal import Heat, Hysteresis, look, watchable
from tests.devices.boards import Board

PI = "sys/devices/platform/soc/soc:firmware/get_throttled"


def _zone(board, temperature, trip=80_000, number=0):
    folder = f"sys/class/thermal/thermal_zone{number}"
    board.write(f"{folder}/type", "cpu-thermal\n").write(f"{folder}/temp", f"{temperature}\n")
    return board.write(f"{folder}/trip_point_0_type", "passive\n").write(f"{folder}/trip_point_0_temp", f"{trip}\n")


def test_a_board_without_sensors_is_not_watched(tmp_path):
    assert not watchable(tmp_path)
    assert look(tmp_path) == Heat()


@pytest.mark.parametrize(
    ("flags", "signs"),
    [
        ("0", ()),
        ("50000", ()),  # it happened since boot: over
        ("e0008", ("soft temperature limit",)),
        ("50005", ("under-voltage", "throttled")),
        ("0x2", ("frequency capped",)),
    ],
)
def test_the_flags_of_a_pi_s_firmware(tmp_path, flags, signs):
    Board(tmp_path).write(PI, f"{flags}\n")
    assert watchable(tmp_path)
    assert look(tmp_path).signs == signs


def test_a_processor_that_the_kernel_slows_down_is_a_sign_and_a_fan_is_none(tmp_path):
    board = Board(tmp_path)
    for number, kind, state in ((0, "pwm-fan", 4), (1, "thermal-cpufreq-0", 0), (2, "thermal-cpufreq-1", 3)):
        folder = f"sys/class/thermal/cooling_device{number}"
        board.write(f"{folder}/type", f"{kind}\n").write(f"{folder}/cur_state", f"{state}\n")
        board.write(f"{folder}/max_state", "7\n")
    assert look(tmp_path).signs == ("thermal-cpufreq-1 cooled by 3 of 7 steps",)


def test_a_zone_at_its_passive_trip_point_is_a_sign(tmp_path):
    board = _zone(Board(tmp_path), 79_000)
    assert look(tmp_path).signs == ()
    _zone(board, 81_500, number=1)
    heat = look(tmp_path)
    assert heat.signs == ("cpu-thermal at 82 °C of 80 °C",)
    assert (heat.temperature_c, heat.trip_c) == (81.5, 80.0)


def test_a_count_of_x86_is_a_sign_only_while_it_grows(tmp_path):
    board = Board(tmp_path).write("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "41\n")
    first = look(tmp_path)
    assert look(tmp_path, first).signs == ()
    board.write("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "42\n")
    assert look(tmp_path, first).signs == ("the processor throttled itself",)


def test_a_low_clock_is_told_and_is_no_sign(tmp_path):
    board = Board(tmp_path)
    for core, now in ((0, 600_000), (1, 1_500_000)):
        board.write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{now}\n")
        board.write(f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_max_freq", "1200000\n")
        board.write(f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq", "1500000\n")
    heat = look(tmp_path)
    assert (heat.speed, heat.capped, heat.signs) == (0.4, 0.8, ())


def test_the_state_changes_only_after_looks_in_a_row():
    state, hot, cool = Hysteresis(rise=2, fall=3), Heat(signs=("throttled",)), Heat()
    changes = [state.update(heat) for heat in (hot, cool, hot, hot, cool, cool, hot, cool, cool, cool)]
    assert changes == [False, False, False, True, False, False, False, False, False, True]


def test_a_board_that_is_still_near_its_trip_point_does_not_count_as_cool():
    state = Hysteresis(rise=1, fall=2)
    state.update(Heat(signs=("throttled",)))
    for _ in range(5):
        assert not state.update(Heat(temperature_c=78.0, trip_c=80.0))
    assert not state.update(Heat(temperature_c=70.0, trip_c=80.0))
    assert state.update(Heat(temperature_c=70.0, trip_c=80.0))
    assert not state.throttled
