"""What the names of gates mean, for people."""

from __future__ import annotations

from collections.abc import Iterable

_SENTENCES = {
    'too_dark': 'the image is too dark',
    'empty': 'the image shows nothing',
    'blurred': 'the image is blurred',
    'unfamiliar': 'the image resembles no training image',
    'unconfirmed': 'landmarks and network do not agree',
    'not_finite': 'the network gave no pose',
    'outside_map': 'the pose lies far from every training image',
    'too_vague': 'the pose is too uncertain',
    'waiting': 'answers to more images must agree',
    'contradicts_track': 'the answer contradicts those before it',
    'contradicts_prior': 'the pose contradicts where the robot believes to be',
    'too_few_inliers': 'too few landmarks agree',
}


def sentences(reasons: Iterable[str]) -> list[str]:
    """Such as 'the image is too dark' for 'too_dark'; an unknown name in plain words."""
    return [_SENTENCES.get(reason, reason.replace('_', ' ')) for reason in reasons]
