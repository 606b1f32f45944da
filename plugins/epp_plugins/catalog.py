"""Every plugin that ships: `type` in the configuration file -> `module:Class`."""

CATALOG: dict[str, str] = {
    "anthropic-parser": "epp_plugins.parsers.anthropic:AnthropicParser",
    "core-metrics-extractor": "epp_plugins.extractors.core_metrics:CoreMetricsExtractor",
    "file-discovery": "epp_plugins.discovery.file:FileDiscovery",
    "metrics-data-source": "epp_plugins.sources.metrics:MetricsDataSource",
    "models-data-extractor": "epp_plugins.extractors.models:ModelsDataExtractor",
    "models-data-source": "epp_plugins.sources.models:ModelsDataSource",
    "openai-parser": "epp_plugins.parsers.openai:OpenAIParser",
    "passthrough-parser": "epp_plugins.parsers.passthrough:PassthroughParser",
    "sglanghttp-parser": "epp_plugins.parsers.sglanghttp:SGLangHTTPParser",
    "token-producer": "epp_plugins.producers.token_producer:TokenProducer",
    "vllmhttp-parser": "epp_plugins.parsers.vllmhttp:VLLMHTTPParser",
}
