-- For wrk: requests that differ in a cookie; at the end one line of JSON.

local requests = {}
local last = 0

function init(arguments)
   local cookie = wrk.headers["Cookie"]
   for number = 1, 1000 do
      wrk.headers["Cookie"] = string.format("%s; token=%024x", cookie, number)
      requests[number] = wrk.format()
   end
end

function request()
   last = last % #requests + 1
   return requests[last]
end

function done(summary, latency, rates)
   local e = summary.errors
   local errors = e.connect + e.read + e.write + e.status + e.timeout
   local form = '{"requests": %d, "errors": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d}\n'
   io.write(string.format(form, summary.requests, errors, summary.duration / 1e6,
                          latency:percentile(50), latency:percentile(99)))
end
