-- wrk script: one fixed request over and over. Environment: METHOD, BODY (a file, may be empty), HEADERS ("name: value" lines).
-- No global `request`: wrk then builds the bytes once and runs no Lua per request.
wrk.method = os.getenv("METHOD") or "GET"

local path = os.getenv("BODY") or ""
if path ~= "" then
  local file = assert(io.open(path, "rb"))
  wrk.body = file:read("*a")
  file:close()
end

for name, value in string.gmatch(os.getenv("HEADERS") or "", "([^:\n]+): ([^\n]+)") do
  wrk.headers[name] = value
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"us":%d,"p50":%.1f,"p90":%.1f,"p99":%.1f,"max":%.1f,"status_errors":%d,"socket_errors":%d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max,
    e.status, e.connect + e.read + e.write + e.timeout))
end
