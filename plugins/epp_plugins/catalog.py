"""Every plugin that ships: `type` in the configuration file -> `module:Class`."""

CATALOG: dict[str, str] = {
    "anthropic-parser": "epp_plugins.parsers.anthropic:AnthropicParser",
    "openai-parser": "epp_plugins.parsers.openai:OpenAIParser",
    "passthrough-parser": "epp_plugins.parsers.passthrough:PassthroughParser",
    "sglanghttp-parser": "epp_plugins.parsers.sglanghttp:SGLangHTTPParser",
    "token-producer": "epp_plugins.producers.token_producer:TokenProducer",
    "vllmhttp-parser": "epp_plugins.parsers.vllmhttp:VLLMHTTPParser",
}
