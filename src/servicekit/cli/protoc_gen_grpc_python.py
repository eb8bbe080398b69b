"""The protoc plugin `grpc_python`: writes gRPC's stubs for Python where buf can only run plugins.

gRPC's own generator is built into `grpc_tools.protoc` and is no program of its own, and buf's `protoc_builtin`
knows only the generators of protoc itself. So this one unpacks the request, lets `grpc_tools.protoc` write into a
temporary folder, and packs what it finds there.

In `buf.gen.yaml`: `local: protoc-gen-grpc_python`. Needs `servicekit[gen]`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import Edition, FileDescriptorSet


def generate(request: CodeGeneratorRequest) -> CodeGeneratorResponse:
    """Return the stubs for `request.file_to_generate`, or a response whose `error` is what protoc said."""
    response = CodeGeneratorResponse(
        # Claimed as far as the format goes: what the generator behind this one cannot do, it refuses itself.
        supported_features=CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
        | CodeGeneratorResponse.FEATURE_SUPPORTS_EDITIONS,
        minimum_edition=Edition.EDITION_PROTO2,
        maximum_edition=Edition.EDITION_2023,
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        out.mkdir()
        descriptors = Path(folder, "descriptors.binpb")
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={descriptors}"]
        # Options go before the colon, in protoc's older spelling: this generator has no --grpc_python_opt.
        command.append(
            f"--grpc_python_out={request.parameter}:{out}" if request.parameter else f"--grpc_python_out={out}"
        )
        ran = subprocess.run([*command, *request.file_to_generate], capture_output=True, text=True, check=False)
        if ran.returncode:
            response.error = ran.stderr or f"grpc_tools.protoc ended with {ran.returncode}"
            return response
        for path in sorted(path for path in out.rglob("*") if path.is_file()):
            response.file.add(name=path.relative_to(out).as_posix(), content=path.read_text(encoding="utf-8"))
    return response


def main() -> None:
    """Answer the request on standard input on standard output, as protoc and buf ask of a plugin."""
    request = CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
    sys.stdout.buffer.write(generate(request).SerializeToString())


if __name__ == "__main__":
    main()
