"""Reports: tables in Markdown, numbers in JSON, plots in PNG."""

from collections.abc import Iterable, Mapping, Sequence
import importlib.util
import json
import os

import numpy as np

from v2meow_jax import errors
from v2meow_jax import files
from v2meow_jax.metrics import reconstruction

_GENERATED, _REAL, _SHUFFLED = '#1b7a6e', '#8a8a8a', '#c8553d'
# Measures of adherence that a plot shows, all with 1 as the best value.
_PLOTTED = (
  'tempo_accuracy',
  'tempo_correlation',
  'mode_accuracy',
  'mode_separation',
  'energy_correlation',
)


def check_can_plot() -> None:
  """Raises UserError if Matplotlib is not installed."""
  if importlib.util.find_spec('matplotlib') is None:
    raise errors.UserError(
      'Matplotlib is missing, expected it for the plots of a report. Install '
      'it with pip install matplotlib.'
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Returns a Markdown table, its columns aligned."""
  lines = [list(header), *map(list, rows)]
  widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ['-' * width for width in widths])
  return '\n'.join(
    '| '
    + ' | '.join(
      cell.ljust(width) for cell, width in zip(line, widths, strict=True)
    )
    + ' |'
    for line in lines
  )


def _number(value: float, digits: int) -> str:
  # Never a negative zero.
  return f'{round(value, digits) + 0.0:.{digits}f}'


def _interval(estimate: Mapping, digits: int) -> str:
  value, low, high = (
    _number(estimate[key], digits) for key in ('value', 'low', 'high')
  )
  return f'{value} [{low}, {high}]'


def adherence_table(generated: Mapping, real: Mapping) -> str:
  """Lays out two results of `adherence.Adherence` as a table.

  Args:
    generated: of the generated music.
    real: of the real music of the same videos, the ceiling.
  """
  rows = []
  for name, row in generated['measures'].items():
    digits = row['digits']
    rows.append(
      (
        row['label'],
        _interval(row, digits),
        _interval(row['shuffled'], digits),
        'yes' if row['is_apart'] else '**no**',
        _interval(real['measures'][name], digits),
      )
    )
  header = ('measure', 'generated', 'shuffled videos', 'apart', 'real music')
  return markdown_table(header, rows)


def music_table(result: Mapping) -> str:
  """Lays out a result of `music.MusicQuality` as a table."""
  rows = []
  for row in result['quantities'].values():
    digits = row['digits']
    spreads = [
      f'{_number(row[kind]["median"], digits)} '
      f'({_number(row[kind]["low"], digits)} to '
      f'{_number(row[kind]["high"], digits)})'
      for kind in ('real', 'generated')
    ]
    verdict = 'yes' if row['is_inside'] else '**no**'
    rows.append(
      (
        row['label'] + (f' ({row["unit"]})' if row['unit'] else ''),
        *spreads,
        f'{row["share_inside"]:.0%}',
        verdict if row['is_judged'] else 'not judged',
      )
    )
  header = (
    'quantity: median (5 % to 95 %)',
    'real',
    'generated',
    'inside the real spread',
    'like real music',
  )
  return markdown_table(header, rows)


def codec_table(result: Mapping) -> str:
  """Lays out a result of `reconstruction.Reconstruction` as a table."""
  rows = [
    (coding, *(_interval(values[name], 2) for name in reconstruction.MEASURES))
    for coding, values in result['codings'].items()
  ]
  header = ('', *reconstruction.MEASURES.values())
  return markdown_table(header, rows)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file, whole or not at all."""
  with files.replace(os.fspath(path)) as temporary:
    with open(temporary, 'w', encoding='utf-8') as file:
      file.write(text)


def write_json(path: str | os.PathLike, values: Mapping) -> None:
  """Writes a JSON file; what is not finite becomes null."""
  text = json.dumps(_finite(values), indent=1, allow_nan=False)
  write_text(path, text + '\n')


def _finite(value):
  if isinstance(value, Mapping):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(item) for item in value]
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value


def _figure(num_columns: int, num_rows: int, width: float, height: float):
  from matplotlib import figure

  fig = figure.Figure(
    (width * num_columns, height * num_rows), layout='constrained'
  )
  return fig, fig.subplots(num_rows, num_columns, squeeze=False)


def _save(fig, path: str | os.PathLike) -> None:
  with files.replace(os.fspath(path)) as temporary:
    fig.savefig(temporary, format='png', dpi=110)


def plot_adherence(
  path: str | os.PathLike,
  generated: Mapping,
  real: Mapping,
  clips: Sequence[Mapping],
) -> None:
  """Plots what is heard against what is known of the videos.

  Args:
    path: the PNG file.
    generated: result of `adherence.Adherence` of the generated music.
    real: the same of the real music.
    clips: by clip `tempo_bpm`, `mode` and `energy` of its video, and for
      `generated` and `real` each `tempo_bpm`, `mode_score`, `energy`.
  """
  fig, axes = _figure(4, 1, 4.2, 3.8)
  tempo, mode, energy, summary = axes[0]
  kinds = (('real', _REAL), ('generated', _GENERATED))
  rng = np.random.default_rng(0)
  for side, (kind, color) in zip((-0.17, 0.17), kinds, strict=True):
    style = {'s': 14, 'color': color, 'alpha': 0.7, 'label': kind}
    column = lambda name, kind=kind: [clip[kind][name] for clip in clips]
    known = lambda name: [clip[name] for clip in clips]
    tempo.scatter(known('tempo_bpm'), column('tempo_bpm'), **style)
    jitter = rng.uniform(-0.1, 0.1, len(clips))
    place = [side + (m == 'major') for m in known('mode')] + jitter
    mode.scatter(place, column('mode_score'), **style)
    energy.scatter(known('energy'), column('energy'), **style)
  tempo.set(xlabel="video's tempo (BPM)", ylabel='tempo heard (BPM)')
  mode.set_xticks((0, 1), ('minor', 'major'))
  mode.axhline(0, color='black', linewidth=0.6)
  mode.set(xlabel="video's mode", ylabel='major less minor score')
  energy.set(xlabel="video's energy", ylabel='energy heard')
  tempo.legend()
  names = [name for name in _PLOTTED if name in generated['measures']]
  for place, name in enumerate(reversed(names)):
    row = generated['measures'][name]
    for shift, values, color in (
      (0.2, real['measures'][name], _REAL),
      (0.0, row, _GENERATED),
      (-0.2, row['shuffled'], _SHUFFLED),
    ):
      summary.plot(
        (values['low'], values['high']), (place + shift,) * 2, color=color
      )
      summary.plot(values['value'], place + shift, 'o', color=color)
  labels = [name.replace('_', '\n') for name in reversed(names)]
  summary.set_yticks(range(len(names)), labels)
  summary.set_title('real, generated, shuffled (red)', fontsize=9)
  _save(fig, path)


def plot_music(
  path: str | os.PathLike,
  result: Mapping,
  values: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
  """Plots the distributions of real and generated clips side by side.

  Args:
    path: the PNG file.
    result: of `music.MusicQuality`.
    values: of each quantity the `real` and the `generated` values.
  """
  rows = result['quantities']
  fig, axes = _figure(4, -(-len(rows) // 4), 3.2, 2.8)
  for ax in axes.flat[len(rows) :]:
    ax.set_axis_off()
  rng = np.random.default_rng(0)
  for ax, (name, row) in zip(axes.flat, rows.items(), strict=False):
    ax.axhspan(row['real']['low'], row['real']['high'], color='#eeeeee')
    for place, (kind, color) in enumerate(
      (('real', _REAL), ('generated', _GENERATED))
    ):
      heights = values[name][kind]
      places = place + rng.uniform(-0.2, 0.2, len(heights))
      ax.scatter(places, heights, s=9, color=color, alpha=0.6)
      ax.plot((place - 0.3, place + 0.3), (row[kind]['median'],) * 2, 'k')
    ax.set_xticks((0, 1), ('real', 'generated'))
    ax.set_title(row['label'] + (f' ({row["unit"]})' if row['unit'] else ''))
  _save(fig, path)


def plot_spectrograms(
  path: str | os.PathLike,
  sounds: Mapping[str, np.ndarray],
  sample_rate_hz: int,
) -> None:
  """Plots mel spectrograms one below the other.

  Args:
    path: the PNG file.
    sounds: float32 `[samples]` by title.
    sample_rate_hz: of all of them.
  """
  import librosa

  fig, axes = _figure(1, len(sounds), 9.0, 2.1)
  for ax, (title, sound) in zip(axes[:, 0], sounds.items(), strict=True):
    mel = librosa.feature.melspectrogram(
      y=sound, sr=sample_rate_hz, n_fft=1024, hop_length=256, n_mels=96
    )
    # One reference for all, so that their colours compare.
    level = librosa.power_to_db(mel, ref=1.0, amin=1e-8, top_db=None)
    ax.imshow(
      level,
      origin='lower',
      aspect='auto',
      cmap='magma',
      vmin=-50,
      vmax=30,
      extent=(0, len(sound) / sample_rate_hz, 0, len(mel)),
    )
    ax.set(title=title, ylabel='mel band')
  axes[-1, 0].set_xlabel('seconds')
  _save(fig, path)
