"""Which picture a screen shows at an exact rate: one time at a time."""


def shown(times, end, rate_hz, start=0.0, stop=float('inf')):
  """Returns the number of the picture shown at each time of a regular grid.

  Args:
    times: seconds at which pictures appear, after the first, in order.
    end: seconds at which the last one ends.
    rate_hz: times a second.
    start: first time.
    stop: no time from here on.
  """
  numbers = []
  k = 0
  while start + k / rate_hz < min(end, stop) - 0.0005:
    now = start + k / rate_hz
    number = 0
    for i, time in enumerate(times):
      if time <= now + 0.0005:
        number = i
    numbers.append(number)
    k += 1
  return numbers
