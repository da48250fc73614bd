"""Asks an advisory service whether packages of this environment have known vulnerabilities.

Prints them all and fails where a fixed version exists. Without a network it says so and passes:
style checks must work on a train.
"""

import json
import subprocess
import sys

COMMAND = ('-m', 'pip_audit', '--local', '--skip-editable', '--format', 'json')
OPTIONS = ('--progress-spinner', 'off', '--timeout', '10')


def main() -> int:
    done = subprocess.run([sys.executable, *COMMAND, *OPTIONS], capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)['dependencies']
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
        print(f'audit: skipped, pip-audit could not ask for advisories ({reason:.120})')
        return 0
    found = [(p, v) for p in packages for v in p.get('vulns', ())]
    for package, flaw in found:
        fixed = ', '.join(flaw['fix_versions']) or 'no version yet'
        print(f'audit: {package["name"]} {package["version"]}: {flaw["id"]}, fixed in {fixed}')
    print(f'audit: {len(packages)} packages, {len(found)} known vulnerabilities')
    return int(any(flaw['fix_versions'] for _, flaw in found))


if __name__ == '__main__':
    sys.exit(main())
