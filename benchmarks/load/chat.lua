-- For wrk: chat completions that stream, each of about 4 KB and with another prompt. At the end a line of JSON.

local text = string.rep("the quick brown fox jumps over the lazy dog while engineers measure every microsecond ", 48)
local form = '{"model": "m", "messages": [{"role": "user", "content": "%s"}], "max_tokens": 2, "ignore_eos": true, '
  .. '"stream": true, "stream_options": {"include_usage": true}}'
local headers = { ["content-type"] = "application/json" }
local number = 0

function init(arguments)
  number = tonumber(arguments[1]) -- where another run has not been
end

function request()
  number = number + 1
  local prompt = string.sub(number .. " " .. text, 1, 3900)
  return wrk.format("POST", "/v1/chat/completions", headers, string.format(form, prompt))
end

function done(summary, latency)
  local errors = summary.errors
  local broken = errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format('{"requests": %d, "refused": %d, "broken": %d, "p50": %.3f, "p99": %.3f}\n',
    summary.requests, errors.status, broken, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
