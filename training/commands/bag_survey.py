"""The survey of a bag as text, for `pose_reloc inspect`."""

from __future__ import annotations

from training.datasets.bag.survey import Rhythm, Survey

_LONG = 3.0  # times the typical interval: longer ones are shown as gaps


def survey_text(found: Survey) -> str:
    """The `Survey` as aligned text."""
    lines = [f'bag {found.path} ({found.duration_s:.1f} s)', '', '  topics']
    lines += [f'    {line}' for line in _topics(found)] or ['    none']
    lines += ['', '  frames on TF']
    lines += [f'    {line}' for line in _frames(found)] or ['    none']
    lines += ['', '  for training', *(f'    {line}' for line in _picked(found))]
    if found.notes:
        lines += ['', '  notes', *(f'    - {note}' for note in found.notes)]
    if found.picked.problems:
        lines += ['', '  missing', *(f'    - {problem}' for problem in found.picked.problems)]
        lines += ['', '  record what training needs while a SLAM or localization node runs:']
        lines += [f'    {found.record}']
    return '\n'.join(lines)


def _topics(found: Survey) -> list[str]:
    width = max((len(topic.name) for topic in found.topics), default=0)
    lines = []
    for topic in found.topics:
        kind = topic.type.rsplit('/', 1)[-1]
        line = f'{topic.name:{width}}  {kind:26}{topic.count:>7}'
        if topic.name in found.rhythms:
            line += f'  {_rhythm(found.rhythms[topic.name])}'
        lines.append(line)
    return lines


def _frames(found: Survey) -> list[str]:
    names = [f'{"  " * frame.depth}{frame.name}' for frame in found.frames]
    width = max(map(len, names), default=0)
    lines = []
    for frame, name in zip(found.frames, names):
        if not frame.depth:
            lines.append(name)
        elif frame.moving is None:
            lines.append(f'{name:{width}}  static')
        else:
            lines.append(f'{name:{width}}  {frame.moving.count} times, {_rhythm(frame.moving)}')
    return lines


def _rhythm(rhythm: Rhythm) -> str:
    if rhythm.count < 2:
        return ''
    text = f'{rhythm.rate_hz:.1f} Hz'
    if rhythm.longest_s * rhythm.rate_hz > _LONG:
        text += f', longest gap {rhythm.longest_s:.2f} s at {rhythm.longest_at_s:.1f} s'
    return text


def _picked(found: Survey) -> list[str]:
    picked = found.picked
    rows = {'images': 'none', 'camera': 'unknown', 'poses': 'unknown', 'depth': 'none'}
    if picked.images:
        rows['images'] = f'{picked.images.topic.name}, frame {picked.frame or "unknown"}'
    if picked.camera:
        rows['camera'] = (
            f'{picked.camera_source}: {picked.camera.width}x{picked.camera.height}, '
            f'{picked.camera.distortion_model if picked.camera.distortion else "no distortion"}'
        )
    if picked.truth:
        rows['poses'] = picked.truth.source
    if picked.depth:
        rows['depth'] = picked.depth.images.topic.name
    return [f'{name:8}{text}' for name, text in rows.items()]
