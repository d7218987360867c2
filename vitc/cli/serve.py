"""`vitc serve MODEL`: a model behind HTTP, with a page to drop images on."""

from __future__ import annotations

import argparse
import logging
import sys
from argparse import Namespace
from pathlib import Path

from vitc.cli.parser import Parser, Verb, count, device_option, emit, note, number, weights_option
from vitc.errors import ConfigError
from vitc.machine import check_installed
from vitc.resolve import PREDICTS, check_is
from vitc.wording import counted

PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")


def options(parser: Parser) -> None:
    add = parser.add_argument
    about = "a run, a folder of folds or of vitc save, or a file of vitc export"
    add("run_folder", metavar="MODEL", type=Path, help=about)
    add("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    about = "default: 8000; 0 takes any free one"
    add("--port", metavar="N", type=port, default=8000, help=about)
    add("--topk", metavar="K", type=count, default=5, help="classes per image (default: 5)")
    about = "answer 'unknown' where the best probability is below P, 0 to 1 (default: 0)"
    add("--threshold", metavar="P", type=number(0, 1), default=0.0, help=about)
    about = "images computed together, at most (default: 16)"
    add("--batch", metavar="N", type=count, default=16, help=about)
    about = "milliseconds that a batch waits for more images (default: 5)"
    add("--window", metavar="MS", type=number(0, 10_000), default=5.0, help=about)
    about = "images accepted and not yet answered, at most; more get 503 (default: 64)"
    add("--queue", metavar="N", type=count, default=64, help=about)
    about = "seconds to receive a request, and to answer it (default: 10)"
    add("--timeout", metavar="S", type=number(0.001, 3600), default=10.0, help=about)
    about = "size of a request (default: 20000000)"
    add("--max-bytes", metavar="N", type=count, default=20_000_000, help=about)
    about = "size of an image (default: 50000000)"
    add("--max-pixels", metavar="N", type=count, default=50_000_000, help=about)
    about = "images of one request, at most --queue (default: 32)"
    add("--max-images", metavar="N", type=count, help=about)
    weights_option(parser)
    device_option(parser)


def port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer from 0 to 65535")
    return int(text)


def run(args: Namespace) -> int:
    check_installed("vitc serve", "serve", *PACKAGES)
    if args.max_images is not None and args.max_images > args.queue:
        raise ConfigError(
            f"--max-images {args.max_images} exceeds --queue {args.queue}.",
            "Give a longer --queue, or fewer images of one request.",
        )
    check_is(args.run_folder, *PREDICTS)
    from vitc.deploy import serve
    from vitc.deploy.classifier import Classifier
    from vitc.deploy.uploads import Limits

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with serve.listen(args.host, args.port) as listening:
        classifier = Classifier.load(args.run_folder, args.device, args.weights)
        for text in classifier.notes:
            note(text)
        limits = Limits(
            max_bytes=args.max_bytes,
            max_pixels=args.max_pixels,
            max_images=args.max_images or min(Limits.max_images, args.queue),
            queue=args.queue,
            timeout=args.timeout,
        )
        answers = serve.Answers(
            topk=args.topk,
            threshold=args.threshold,
            batch=args.batch,
            window=args.window / 1000,
            limits=limits,
        )
        app = serve.application(classifier, answers, args.run_folder.resolve().name)
        if serve.is_public(listening):
            note(
                f"Warning: --host {args.host} lets other machines send requests, without password "
                "or encryption. Put a reverse proxy in front of it."
            )
        classes = counted(len(classifier.classes), "class", "classes")
        url = serve.url_of(listening)
        emit(f"{classifier.name}, {classes}: {url}")
        sys.stdout.flush()
        note(f"A page to drop images on, or: curl --data-binary @photo.jpg {url}/predict")
        note("Ctrl-C ends it.")
        serve.run(app, listening, args.timeout)
    return 0


VERB = Verb(
    summary="Answer images over HTTP, with limits, metrics and a page to drop them on.",
    usage="MODEL [options]",
    example="vitc serve runs/photos --threshold 0.6\n"
    "curl --data-binary @photo.jpg http://127.0.0.1:8000/predict",
    options=options,
    run=run,
    runs=("run_folder",),
    epilog="Several images: curl -F a=@1.jpg -F b=@2.jpg http://127.0.0.1:8000/predict?topk=3\n"
    "State: /healthz. Prometheus: /metrics. Ctrl-C and SIGTERM end it after the accepted requests.",
)
