"""docker/Dockerfile and docker/Dockerfile.cpu as far as they can be looked at without Docker: their form, what they promise to
SageMaker and Kubernetes, and that the health check tells a server that answers from one that does not."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from harness import EXAMPLES, ROOT, running_server

FILES = ["Dockerfile", "Dockerfile.cpu"]
WORDS = "ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK LABEL RUN USER WORKDIR".split()


def stages(name):
    """The instructions of each stage, by the stage's name, with those of the stages it is made from before its own."""
    text = (ROOT / "docker" / name).read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    made, order = {}, []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        word, rest = line.split(None, 1)
        assert word in WORDS, line
        if word == "FROM":
            image, stage = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            assert image in made or re.search(r":[\w.-]*\d|:\w+-slim$", image), f"{image} names no version"
            made[stage] = [(word, rest), *made.get(image, [])]
            order.append(stage)
        else:
            made[order[-1]].append((word, rest))
    return made, order


def values(instructions, word):
    return [rest for found, rest in instructions if found == word]


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_there_and_no_shell_leaves_lists_behind(name):
    made, _ = stages(name)
    ignored = (ROOT / "docker" / f"{name}.dockerignore").read_text().splitlines()
    for instructions in made.values():
        for copied in values(instructions, "COPY"):
            source = re.match(r"--from=(\S+)", copied)
            if source:
                assert source.group(1) in made, copied
            elif not copied.startswith(". "):
                assert (ROOT / copied.split()[0]).exists() and f"!{copied.split()[0]}" in ignored, copied
        for command in values(instructions, "RUN"):
            if "apt-get install" in command:
                assert "--no-install-recommends" in command and "rm -rf /var/lib/apt/lists/*" in command, command
            syntax = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
            assert syntax.returncode == 0, syntax.stderr
            assert not re.search(r"curl|wget|sudo|pip install", command), command


@pytest.mark.parametrize("name", FILES)
def test_all_that_the_build_reads_is_sent_to_it(name):
    sent = {line[1:] for line in (ROOT / "docker" / f"{name}.dockerignore").read_text().splitlines() if line.startswith("!")}
    read = {found for found in re.findall(r'"(\w+)[/"]', (ROOT / "build.rs").read_text()) if (ROOT / found).is_dir()}
    read |= {member.split("/")[0] for member in re.findall(r'"([\w/-]+)"', re.search(r"members = \[(.*)\]", (ROOT / "Cargo.toml").read_text()).group(1))}
    for source in (ROOT / "src").rglob("*.rs"):
        if "tests" not in source.parts and source.name != "tests.rs":
            read |= set(re.findall(r'include_(?:str|bytes)!\("(?:\.\./)+(kernels|proto)/', source.read_text()))
    assert {"kernels", "proto", "backends"} <= read, "the patterns above find nothing"
    assert {folder for folder in read if folder not in sent and f"{folder}/plugins" not in sent} == set()


@pytest.mark.parametrize("name", FILES)
def test_sagemaker_and_kubernetes_find_what_they_look_for(name):
    made, order = stages(name)
    assert order[-1] == "server", "what is built where no target is named"
    server, sagemaker = made["server"], made["sagemaker"]
    for instructions in (server, sagemaker):
        assert values(instructions, "ENTRYPOINT") == ['["roundhouse"]'] and values(instructions, "CMD") == ['["serve"]']
    (labels,) = values(sagemaker, "LABEL")
    for capability in ("multi-models", "accept-bind-to-port"):
        assert f"com.amazonaws.sagemaker.capabilities.{capability}=true" in labels
    assert values(sagemaker, "EXPOSE") == ["8080"] and values(sagemaker, "USER") == []
    pod = yaml.safe_load((ROOT / "docker/kubernetes/base/deployment.yaml").read_text())["spec"]["template"]["spec"]
    user = pod["securityContext"]["runAsUser"]
    assert values(server, "USER") == [f"{user}:{user}"]
    ports = {str(port["containerPort"]) for port in pod["containers"][0]["ports"]}
    assert set(values(server, "EXPOSE")[0].split()) == ports


@pytest.mark.parametrize("name", FILES)
def test_the_health_check_tells_a_server_that_answers_from_one_that_does_not(name, tmp_path):
    (check,) = values(stages(name)[0]["server"], "HEALTHCHECK")
    command = json.loads(check.split("CMD ", 1)[1])
    assert shutil.which(command[0]) and "/8002 " in command[-1]

    def healthy(port):
        return subprocess.run([*command[:-1], command[-1].replace("/8002 ", f"/{port} ")], capture_output=True, timeout=10).returncode == 0

    with running_server(EXAMPLES, tmp_path) as server:
        port = server.metrics.rsplit(":", 1)[1]
        assert healthy(port)
    assert not healthy(port)
