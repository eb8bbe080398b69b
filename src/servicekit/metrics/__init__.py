"""Where metrics are kept, one library a file, none of them imported before it is asked for.

``prometheus`` keeps them in this process, to be scraped; ``otel`` hands them to a MeterProvider of OpenTelemetry.
Both are a ``Provider`` as ``servicekit.instruments`` has it, and so may be one of your own.
"""
