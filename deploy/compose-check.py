"""Checks what the compose schema cannot know: that outboxd accepts the configuration each service gives it, and that
every file the services mount is there. Exits 0 only if all of that holds.

    compose-check.py --compose FILE --outboxd PROGRAM
"""

import argparse
import os
import pathlib
import subprocess
import sys

import ruamel.yaml


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compose", type=pathlib.Path, required=True, help="the compose file")
    parser.add_argument("--outboxd", required=True, help="the program that reads the configuration")
    flags = parser.parse_args()
    services = ruamel.yaml.YAML(typ="safe").load(flags.compose)["services"]
    problems, accepted = [], 0
    for name, service in services.items():
        mounts = {}
        for volume in service.get("volumes", []):
            source, target = volume.split(":")[:2]
            if source.startswith("."):
                mounts[target] = str(flags.compose.parent / source)
                if not os.path.exists(mounts[target]):
                    problems.append(f"{name} mounts {source}, which is not there")
        if service["image"] != "outboxd":
            continue
        # A path inside the container is checked as what is mounted there.
        settings = {key: mounts.get(value, value) for key, value in service["environment"].items()}
        check = subprocess.run([flags.outboxd, "config", "check"], env=settings, capture_output=True, text=True, timeout=30)
        if check.returncode == 0:
            accepted += 1
        else:
            problems.append(f"outboxd refuses the configuration of {name}: {check.stderr.strip()}")
    if accepted == 0:
        problems.append("no service runs outboxd with a configuration that it accepts")
    if problems:
        sys.exit("\n".join(problems))
    print(f"compose: outboxd accepts the configuration of {accepted} services")


if __name__ == "__main__":
    main()
