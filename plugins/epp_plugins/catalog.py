"""Every plugin that ships: `type` in the configuration file -> `module:Class`."""

CATALOG: dict[str, str] = {
    "agent-identity": "epp_plugins.requestcontrol.agent_identity:AgentIdentity",
    "anthropic-parser": "epp_plugins.parsers.anthropic:AnthropicParser",
    "approx-prefix-cache-producer": "epp_plugins.producers.approx_prefix_cache:ApproxPrefixCacheProducer",
    "core-metrics-extractor": "epp_plugins.extractors.core_metrics:CoreMetricsExtractor",
    "file-discovery": "epp_plugins.discovery.file:FileDiscovery",
    "inflight-load-producer": "epp_plugins.producers.inflight_load:InflightLoadProducer",
    "metrics-data-source": "epp_plugins.sources.metrics:MetricsDataSource",
    "models-data-extractor": "epp_plugins.extractors.models:ModelsDataExtractor",
    "models-data-source": "epp_plugins.sources.models:ModelsDataSource",
    "openai-parser": "epp_plugins.parsers.openai:OpenAIParser",
    "passthrough-parser": "epp_plugins.parsers.passthrough:PassthroughParser",
    "request-attribute-reporter": "epp_plugins.requestcontrol.request_attribute_reporter:RequestAttributeReporter",
    "session-id-producer": "epp_plugins.producers.session_id:SessionIdProducer",
    "sglanghttp-parser": "epp_plugins.parsers.sglanghttp:SGLangHTTPParser",
    "token-producer": "epp_plugins.producers.token_producer:TokenProducer",
    "vllmhttp-parser": "epp_plugins.parsers.vllmhttp:VLLMHTTPParser",
}
