"""Nothing in a file is run when it is loaded: calls that could do so are looked for in the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("model", "data", "utils", "research", "tools")
# each name is the end of the name of a call, as written in the source
NEVER = (
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "Unpickler",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "joblib.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "hub.load",
    "jit.load",
    "extract_archive",
    "extract",
    "unpack_archive",
    "ElementTree.parse",
    "ElementTree.fromstring",
    "ET.parse",
    "ET.fromstring",
    "ET.XML",
    "ET.iterparse",
)
SAFE = ("defusedxml.ElementTree.parse", "defusedxml.ElementTree.fromstring", "re.compile", "torch.compile")
ONLY_WITH = {
    "torch.load": "weights_only=True",
    "get_state_dict": "weights_only=True",
    "load_state_dict_from_url": "weights_only=True",
    "np.load": "allow_pickle=False",
    "extractall": "filter=",
}
NEVER_WITH = ("weights_only=False", "allow_pickle=True", "shell=True")


def ends(name, *endings):
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def unsafe_calls(text):
    """Return a line per call that could run what a file holds, or write where it says."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = [f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in node.keywords]
        bare = isinstance(node.func, ast.Name)  # net.eval() is not eval()
        if ends(name, *NEVER) and not ends(name, *SAFE) and (bare or not ends(name, "eval", "exec")):
            found.append(f"{node.lineno}: {name}")
        found += [
            f"{node.lineno}: {name} without {option}"
            for call, option in ONLY_WITH.items()
            if ends(name, call) and not any(given.startswith(option) for given in options)
        ]
        found += [f"{node.lineno}: {name} with {option}" for option in NEVER_WITH if option in options]
    return found


def test_no_call_runs_what_a_file_holds():
    sources = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    assert len(sources) > 15
    found = {path.name: unsafe_calls(path.read_text(encoding="utf-8")) for path in sources}
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, 'cpu', weights_only=safe)",
        "torch.hub.load('a/b', 'c')",
        "weights.get_state_dict(check_hash=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.lib.format.read_array(file, allow_pickle=True)",
        "pickle.load(file)",
        "pickle.Unpickler(file)",
        "eval(text)",
        "x = [exec(text)]",
        "compile(text, name, 'exec')",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "yaml.load(file)",
        "yaml.load(file, Loader=yaml.SafeLoader)",
        "archive.extractall(folder)",
        "archive.extract(member)",
        "extract_archive(path)",
        "shutil.unpack_archive(path)",
        "xml.etree.ElementTree.parse(path)",
        "ET.fromstring(text)",
    ],
)
def test_unsafe_calls_are_found(text):
    assert unsafe_calls(f"def f():\n    {text}")[0].startswith("2: ")


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "net.eval()",
        "yaml.safe_load(file)",
        "re.compile('a')",
        "torch.compile(net)",
        "subprocess.run([name])",
        "archive.extractall(folder, filter=plain)",
        "defusedxml.ElementTree.parse(path)",
        "json.load(file)",
    ],
)
def test_safe_calls_are_not(text):
    assert unsafe_calls(text) == []
