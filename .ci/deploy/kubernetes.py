"""deploy/kubernetes.yaml and the Helm chart: everything that they say is valid for Kubernetes, fits together, and is a configuration that
makegate takes."""

import subprocess
import tempfile
import tomllib
from pathlib import Path

import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from kubernetes_validate.utils import all_versions

from tools import check, fail, helm

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/makegate"
RULES = ROOT / "deploy/prometheus/makegate.rules.yaml"
MONITORING = {"PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule}
# Sidecars came with 1.29.
OLDEST = (1, 29)
# What is in the cluster already: its Secrets, and a claim of the values in ci/.
GIVEN = {("Secret", "makegate"), ("Secret", "gate-makegate"), ("Secret", "make-secrets"), ("Secret", "gate-tls"),
         ("PersistentVolumeClaim", "log"), ("ServiceAccount", "default")}
WRONG_VALUES = {
    "a typing error": "servise: {}",
    "a door that no caller reaches": 'config: { gateway: { listen: "127.0.0.1:8080" } }',
    "a log outside of the volume": "config: { audit: { dir: /tmp/audit } }",
    "a key instead of its hash": "config: { caller: [{ name: a, keys: [5b9b0b0e-0c5e-4a2e-9d55-0f7c9a1f3c11], grants: ['*'] }] }",
    "an organization that is no number": "config: { caller: [{ name: a, grants: ['*'], organizations: [x] }] }",
    "a tag as digest": "image: { digest: latest }",
    "runbooks at no URL": "prometheusRule: { runbooks: docs/runbooks.md }",
    "no replica": "replicas: 0",
    "a volume that several replicas share": "{ replicas: 2, persistence: { existingClaim: log } }",
    "one name for all replicas": "{ replicas: 2, config: { replicas: { name: gate } } }",
    "a database's URL that is not a secret": "{ replicas: 2, config: { replicas: { url_file: /etc/makegate/postgres } } }",
}
# How many pods a set of values makes, where it is not one that needs no database.
REPLICAS = {"replicas-values.yaml": 3, "left-values.yaml": 1}


def check_all(makegate):
    versions = [version for version in all_versions() if parsed(version) >= OLDEST]
    check(len(versions) > 1, "kubernetes-validate has no versions of Kubernetes that are new enough")
    versions = [versions[0], versions[-1]]
    documents("deploy/kubernetes.yaml", (ROOT / "deploy/kubernetes.yaml").read_text(), versions, makegate)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    check(chart["appVersion"] == version, f"Chart.yaml: appVersion is not {version}")
    told = ran("lint", "--strict", CHART)
    check("0 chart(s) failed" in told, told)
    values = sorted((CHART / "ci").glob("*-values.yaml"))
    check(values, "the chart has no values to render")
    rules = 0
    for file in [None, *values]:
        more = ["--values", file] if file else []
        rendered = ran("template", "gate", CHART, *more)
        name = file.name if file else "default values"
        documents(f"chart, {name}", rendered, versions, makegate)
        replicas(f"chart, {name}", rendered, REPLICAS.get(name))
        rules += alerts(rendered)
        notes = ran("install", "gate", CHART, "--dry-run=client", *more)
        check("port-forward" in notes, f"NOTES.txt says nothing: {notes}")
    check(rules == 1, f"{rules} sets of values render the alerts")
    for what, text in WRONG_VALUES.items():
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(text)
            file.flush()
            told = subprocess.run([helm(), "template", "gate", CHART, "--values", file.name], capture_output=True, text=True)
            check(told.returncode != 0 and "schema" in told.stderr, f"values.schema.json takes {what}: {told.stderr}")
    print(f"kubernetes.yaml and the chart with {len(values) + 1} sets of values: valid in Kubernetes {versions[0]} and {versions[-1]}; "
          f"{len(WRONG_VALUES)} wrong values refused")


def parsed(version):
    return tuple(int(part) for part in version.split(".")[:2])


def ran(*arguments):
    told = subprocess.run([helm(), *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if told.returncode != 0:
        fail(f"helm {' '.join(map(str, arguments))}: {told.stdout}{told.stderr}")
    return told.stdout


def documents(where, text, versions, makegate):
    try:
        every = [document for document in yaml.safe_load_all(text) if document]
        for document in every:
            valid(document, versions)
        fits_together(every)
        for document in every:
            if document["kind"] == "ConfigMap":
                configuration(document["data"]["makegate.toml"], makegate)
    except Wrong as wrong:
        fail(f"{where}: {wrong}")


def replicas(where, rendered, count):
    """Several replicas have the database's URL and key from the Secret, a Job that gets it ready, and the way to it; one has none of that."""
    every = [document for document in yaml.safe_load_all(rendered) if document]
    of = {(document["kind"], document["metadata"]["name"].removeprefix("gate-makegate")): document for document in every}
    stateful, policy = of["StatefulSet", ""]["spec"], of.get(("NetworkPolicy", ""))
    config = tomllib.loads(of["ConfigMap", ""]["data"]["makegate.toml"]).get("replicas")
    check(stateful["replicas"] == (count or 1), f"{where}: {stateful['replicas']} pods")
    check((config is not None) == (count is not None) == (("Job", "-init") in of), f"{where}: [replicas] and its Job are not there together")
    several = (count or 1) > 1
    spread = stateful["template"]["spec"].get("topologySpreadConstraints", [])
    check(several <= bool(spread) and several == ("minReadySeconds" in stateful), f"{where}: how the pods are spread and updated")
    for constraint in spread:
        check(selects(constraint["labelSelector"]["matchLabels"], stateful["template"]), f"{where}: it spreads other pods")
    check(not several or stateful["volumeClaimTemplates"], f"{where}: no volume for each replica")
    if count is None:
        return
    secret = "/run/secrets/makegate/"
    check(config["url_file"].startswith(secret) and config["key_file"].startswith(secret) and "name" not in config, f"{where}: {config}")
    job = of["Job", "-init"]
    check(job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade", f"{where}: the Job does not run before the pods")
    check(of["ConfigMap", "-init"]["data"] == of["ConfigMap", ""]["data"], f"{where}: the Job has another configuration")
    of_pods, of_job = (template["spec"]["volumes"] for template in (stateful["template"], job["spec"]["template"]))
    secrets = [[volume["secret"] for volume in volumes if volume["name"] == "secrets"] for volumes in (of_pods, of_job)]
    check(secrets[0] == secrets[1], f"{where}: the Job has another Secret")
    ports = [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] if policy else []
    check(not policy or len(ports) == 4, f"{where}: the way to the database: {ports}")


def alerts(rendered):
    """How many PrometheusRules there are; each has the very groups of the rules, with the runbooks at another address."""
    rules = [document for document in yaml.safe_load_all(rendered) if document and document["kind"] == "PrometheusRule"]
    for rule in rules:
        urls = {one["annotations"]["runbook_url"].partition("#")[0] for group in rule["spec"]["groups"] for one in group["rules"] if "alert" in one}
        check(len(urls) == 1 and urls != {"docs/runbooks.md"}, f"the runbooks are at {urls}")
        expected = yaml.safe_load(RULES.read_text().replace("docs/runbooks.md", urls.pop()))
        check(rule["spec"]["groups"] == expected["groups"], "the chart's alerts are not those of deploy/prometheus")
    return len(rules)


class Wrong(Exception):
    pass


def require(right, why):
    if not right:
        raise Wrong(why)


def valid(document, versions):
    what = f"{document['kind']} {document['metadata']['name']}"
    if document["kind"] in MONITORING:
        # The model ignores members that it does not know; they are gone from what it writes.
        read = MONITORING[document["kind"]].model_validate(document).model_dump(by_alias=True, exclude_unset=True, mode="json")
        require(read == document, f"{what}: has members that {document['kind']} lacks: {document}, of which {read} is known")
        return
    for version in versions:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise Wrong(f"{what}, Kubernetes {version}: {'/'.join(map(str, error.path))}: {error.message}") from error


def fits_together(every):
    """Selectors select, and every name that is mentioned is there."""
    there = GIVEN | {(document["kind"], document["metadata"]["name"]) for document in every}
    pods = []
    for document in every:
        if document["kind"] == "Pod":
            pod(document["metadata"], document["spec"], [], there)
        if document["kind"] == "Job":
            pod(document["spec"]["template"]["metadata"], document["spec"]["template"]["spec"], [], there)
        if document["kind"] == "StatefulSet":
            spec = document["spec"]
            template = spec["template"]
            claims = [claim["metadata"]["name"] for claim in spec.get("volumeClaimTemplates", [])]
            pod(template["metadata"], template["spec"], claims, there)
            pods.append(template)
            require(selects(spec["selector"]["matchLabels"], template), f"{document['metadata']['name']} does not select its own pods")
            require(("Service", spec["serviceName"]) in there, f"there is no Service {spec['serviceName']}")
    for document in every:
        kind, spec = document["kind"], document.get("spec", {})
        selector = {"Service": lambda: spec["selector"], "NetworkPolicy": lambda: spec["podSelector"]["matchLabels"],
                    "PodDisruptionBudget": lambda: spec["selector"]["matchLabels"], "PodMonitor": lambda: spec["selector"]["matchLabels"]}
        if kind not in selector:
            continue
        selected = [template for template in pods if selects(selector[kind](), template)]
        require(len(selected) == 1, f"{kind} {document['metadata']['name']} selects {len(selected)} pods")
        names = {port["name"] for container in containers(selected[0]["spec"]) for port in container.get("ports", [])}
        for name in port_names(spec):
            require(name in names, f"{kind}: the pod has no port {name}")


def selects(labels, template):
    require(not {"app.kubernetes.io/version", "helm.sh/chart"} & labels.keys(), f"an upgrade changes what is selected: {labels}")
    return labels.items() <= template["metadata"]["labels"].items()


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


def port_names(spec):
    """The ports of a Service, a NetworkPolicy or a PodMonitor that name one of the pod's."""
    ports = [port.get("targetPort") for port in spec.get("ports", [])]
    ports += [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
    ports += [endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", [])]
    return [port for port in ports if isinstance(port, str)]


def pod(metadata, spec, claims, there):
    name = metadata.get("name") or metadata["labels"]
    context = spec["securityContext"]
    require(spec.get("automountServiceAccountToken") is False, f"{name}: it gets a token of the cluster")
    require(context["runAsNonRoot"] and context["runAsUser"] != 0, f"{name}: it may run as root")
    require(context["seccompProfile"]["type"] == "RuntimeDefault", f"{name}: seccomp")
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for volume in volumes.values():
        for kind, member in (("ConfigMap", ("configMap", "name")), ("Secret", ("secret", "secretName")),
                             ("PersistentVolumeClaim", ("persistentVolumeClaim", "claimName"))):
            if member[0] in volume:
                require((kind, volume[member[0]][member[1]]) in there, f"{name}: there is no {kind} {volume[member[0]][member[1]]}")
    mounted = {mount["name"] for container in containers(spec) for mount in container.get("volumeMounts", [])}
    require(set(volumes) <= mounted, f"{name}: nobody uses {set(volumes) - mounted}")
    require(("ServiceAccount", spec.get("serviceAccountName", "default")) in there, f"{name}: its service account")
    for container in containers(spec):
        own = container["securityContext"]
        which = f"{name}, container {container['name']}"
        require(own["readOnlyRootFilesystem"] and own["allowPrivilegeEscalation"] is False, f"{which}: securityContext")
        require(own["capabilities"] == {"drop": ["ALL"]}, f"{which}: capabilities")
        require(container["resources"]["requests"] and container["resources"]["limits"]["memory"], f"{which}: resources")
        for mount in container.get("volumeMounts", []):
            require(mount["name"] in {*volumes, *claims}, f"{which}: there is no volume {mount['name']}")
        if container["name"] == "makegate":
            gateway(which, container)
            require(context["fsGroup"] == context["runAsUser"], f"{which}: it cannot write to its volume")
            require(spec["terminationGracePeriodSeconds"] > 25, f"{which}: it is killed while it drains")


def gateway(which, container):
    ports = {port["name"] for port in container["ports"]}
    for probe, path in (("startupProbe", ("/livez", "/readyz")), ("readinessProbe", ("/readyz",)), ("livenessProbe", ("/livez",))):
        asked = container[probe]["httpGet"]
        require(asked["port"] in ports and asked["path"] in path, f"{which}: {probe}")


def configuration(text, makegate):
    """What the ConfigMap says is a valid configuration, except that its files are not here."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "makegate.toml"
        file.write_text(text)
        told = subprocess.run([makegate, "check", "--config", file], capture_output=True, text=True)
        require(told.returncode == 0, f"makegate check: {told.stdout}{told.stderr}")
