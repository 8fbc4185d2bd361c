"""A local Hub for the real client: as much of the Hugging Face Hub's API as huggingface_hub, timm and we use.

Everything lives in memory. `faults` maps a kind of request ("create", "preupload", "batch", "lfs", "commit", "resolve",
"info") to a list of what happens to the next ones: a status (503), or "cut" (the connection breaks off half-way), or
None (all is well).
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKENS = {"hf_write": "write", "hf_read": "read"}


class Repo:
    """Files by commit; branches and tags are names of commits."""

    def __init__(self, private: bool) -> None:
        self.private = private
        first = hashlib.sha1(b"first").hexdigest()
        self.commits: dict[str, dict[str, bytes]] = {first: {".gitattributes": b"*.safetensors filter=lfs\n"}}
        self.refs = {"main": first}

    def at(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((self.refs[branch], sorted(files.items()))).encode()).hexdigest()
        self.commits[sha], self.refs[branch] = files, sha
        return sha


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub:` serves at `hub.url`; `hub.log` lists (kind, path) of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: dict[str, list[Any]] = defaultdict(list)
        self.log: list[tuple[str, str]] = []

    def __enter__(self) -> Hub:
        # the poll interval, in seconds, is how long the end of every test has to wait
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def count(self, kind: str) -> int:
        return sum(k == kind for k, _ in self.log)

    def handle_error(self, *error: object) -> None:
        """Print nothing. Some tests close the connection on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, content: Any = b"", status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", headers.pop("Content_Length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.answer({"error": message}, status, **({"X_Error_Code": code} if code else {}), X_Error_Message=message)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_POST()

    def fault(self, kind: str) -> bool:
        """Log the request, and answer it with the fault that the test set, if any. Return whether there was one."""
        self.server.log.append((kind, self.path))
        order = self.server.faults[kind].pop(0) if self.server.faults[kind] else None
        if order == "cut":
            self.close_connection = True
            self.connection.shutdown(2)
        elif order is not None:
            self.refuse(order, "as ordered by the test")
        return order is not None

    def level(self) -> str | None:
        """Return the permission of the token. An unknown token is refused here."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            self.refuse(401, "Invalid username or password.")
            return None
        return TOKENS.get(token, "nothing")

    def repo(self, name: str, level: str) -> Repo | None:
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and level == "nothing"):
            self.refuse(404 if level != "nothing" else 401, "Repository not found", "RepoNotFound")
            return None
        return repo

    # ---- reading

    def do_GET(self) -> None:
        parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        parts = parts[1:] if parts[0] == "datasets" else parts  # files of a data set
        level = self.level()
        if level is None:
            return
        if parts[:2] == ["api", "whoami-v2"]:
            self.answer({"name": "someone", "type": "user", "orgs": [{"name": "org"}]})
        elif parts[0] == "api" and parts[1] in ("models", "datasets") and len(parts) >= 4:
            self.info("/".join(parts[2:4]), parts[4:], level)
        elif len(parts) >= 5 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), level)
        else:
            self.refuse(404, f"no such route: {self.path}")

    def info(self, name: str, rest: list[str], level: str) -> None:
        if self.fault("info") or (repo := self.repo(name, level)) is None:
            return
        if rest == ["refs"]:
            branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
            self.answer({"branches": branches, "tags": [], "converts": []})
            return
        commit = repo.at(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            self.refuse(404, "Revision not found", "RevisionNotFound")
            return
        files = repo.commits[commit]
        if rest[:1] == ["tree"]:
            entries = _tree(files, "/".join(rest[2:]), "recursive=true" in self.path.lower())
            if entries:
                self.answer(entries)
            else:
                self.refuse(404, "Entry not found", "EntryNotFound")
            return
        siblings = [{"rfilename": path} for path in files]
        self.answer(
            {"id": name, "modelId": name, "sha": commit, "private": repo.private, "siblings": siblings, "tags": []}
        )

    def resolve(self, name: str, revision: str, path: str, level: str) -> None:
        if self.fault("resolve") or (repo := self.repo(name, level)) is None:
            return
        commit = repo.at(revision)
        if commit is None:
            self.refuse(404, "Revision not found", "RevisionNotFound")
        elif path not in repo.commits[commit]:
            self.refuse(404, "Entry not found", "EntryNotFound")
        else:
            content = repo.commits[commit][path]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            lfs = {"X_Linked_Etag": etag, "X_Linked_Size": str(len(content))} if path.endswith(".safetensors") else {}
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {"X_Repo_Commit": commit, "ETag": etag, "Accept_Ranges": "bytes", **lfs}
            if self.command == "HEAD":
                headers["Content_Length"] = str(len(content))
            self.answer(b"" if self.command == "HEAD" else content[start:], 206 if start else 200, **headers)

    # ---- writing

    def do_POST(self) -> None:
        parts = [unquote(part) for part in self.path.partition("?")[0].strip("/").split("/")]
        if parts[0] == "lfs":
            self.upload(parts[1])
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        level = self.level()
        if level is None:
            return
        if parts == ["api", "validate-yaml"]:
            self.answer({"errors": [], "warnings": []})
        elif parts[:2] == ["api", "repos"]:
            self.create(json.loads(body), level)
        elif parts[0] == "api" and parts[1] in ("models", "datasets") and len(parts) >= 6:
            name, verb, revision = "/".join(parts[2:4]), parts[4], parts[5]
            repo = self.repo(name, level)
            if repo is None:
                return
            if level != "write" and verb != "paths-info":
                self.refuse(403, "You need write access")
            else:
                getattr(self, verb.replace("-", "_"))(name, repo, revision, body)
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            self.batch(json.loads(body))
        elif parts[-1] == "verify":
            self.answer({})
        else:
            self.refuse(404, f"no such route: {self.path}")

    def create(self, body: dict[str, Any], level: str) -> None:
        name = f"{body.get('organization') or 'someone'}/{body['name']}"
        if self.fault("create"):
            return
        if level != "write" or body.get("organization") not in (None, "org", "someone"):
            self.refuse(403, f"You don't have the rights to create a model under {body.get('organization')}")
        elif name in self.server.repos:
            self.answer({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
        else:
            private = bool(body.get("private") or body.get("visibility") == "private")
            self.server.repos[name] = Repo(private)
            self.answer({"url": f"{self.server.url}/{name}", "id": name, "name": name})

    def branch(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        if branch in repo.refs:
            self.refuse(409, "Reference already exists")
        else:
            repo.refs[branch] = repo.refs["main"]
            self.answer({})

    def preupload(self, name: str, repo: Repo, revision: str, body: bytes) -> None:
        if self.fault("preupload"):
            return
        files = [
            {
                "path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False, "oid": None,
            }
            for file in json.loads(body)["files"]
        ]  # fmt: skip
        self.answer({"files": files, "commitOid": repo.at(revision)})

    def batch(self, body: dict[str, Any]) -> None:
        if self.fault("batch"):
            return
        objects = []
        for asked in body["objects"]:
            known = asked["oid"] in self.server.lfs
            upload = {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}
            objects.append({**asked, **({} if known else {"actions": upload})})
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        # The body is read before the request is refused. Otherwise, the client would only see a broken connection.
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.fault("lfs"):
            return
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.lfs[oid] = content
        self.answer()

    def commit(self, name: str, repo: Repo, revision: str, body: bytes) -> None:
        if self.fault("commit"):
            return
        files = dict(repo.commits[repo.refs[revision]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repo.commit(revision, files)
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})

    def paths_info(self, name: str, repo: Repo, revision: str, body: bytes) -> None:
        commit = repo.at(revision)
        asked = json.loads(body)["paths"] if body[:1] == b"{" else []
        files = repo.commits[commit] if commit else {}
        self.answer([_entry(path, files[path]) for path in asked if path in files])


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    below = f"{folder}/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(below)}
    if recursive:
        return [_entry(path, content) for path, content in inside.items()]
    folders = {below + path.removeprefix(below).split("/")[0] for path in inside if "/" in path.removeprefix(below)}
    found = [_entry(path, content) for path, content in inside.items() if "/" not in path.removeprefix(below)]
    return found + [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha256(content).hexdigest()
    lfs = {"lfs": {"oid": oid, "size": len(content), "pointerSize": 130}} if path.endswith(".safetensors") else {}
    return {"type": "file", "path": path, "size": len(content), "oid": oid[:40], **lfs}
