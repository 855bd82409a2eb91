/** What Prometheus reads: any text in a label comes back as it was, and what is counted without end is not told without end. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { Counts } from '../../../agent/metrics/counts.ts'
import { exposition } from '../../../agent/metrics/exposition.ts'
import { HttpTimes } from '../../../agent/metrics/http-times.ts'
import { processSamples } from '../../../agent/metrics/process.ts'
import { readExposition } from '../../exposition.ts'

describe('exposition', () => {
  it('gives each metric once, with help and type, whatever the order of the samples', () => {
    const text = exposition([
      { name: 'undernet_networks', value: 1, labels: { kind: 'open' } },
      { name: 'undernet_content_blobs', value: 3 },
      { name: 'undernet_networks', value: 2, labels: { kind: 'closed' } },
    ])
    expect(text).toBe(
      [
        '# HELP undernet_networks Networks that this node is in.',
        '# TYPE undernet_networks gauge',
        'undernet_networks{kind="open"} 1',
        'undernet_networks{kind="closed"} 2',
        '# HELP undernet_content_blobs Blobs in the blob directory.',
        '# TYPE undernet_content_blobs gauge',
        'undernet_content_blobs 3',
        '',
      ].join('\n'),
    )
  })

  it('escapes what a label may have', () => {
    const text = fc.uint16Array({ maxLength: 20 }).map((codes) => String.fromCharCode(...codes))
    const telling = fc.constantFrom('\\', '"', '\n', '\r', '}', ' ', '=')
    fc.assert(
      fc.property(fc.array(fc.oneof(text, telling), { maxLength: 6 }), fc.double({ noNaN: true }), (parts, value) => {
        const network = parts.join('')
        const text = exposition([{ name: 'undernet_records', value, labels: { network } }])
        const [sample] = readExposition(text).get('undernet_records')?.samples ?? []
        return sample?.labels.network === network && sample.value === value
      }),
    )
  })
})

describe('counts', () => {
  it('counts by labels', () => {
    const counts = new Counts('undernet_log_entries_total', ['level', 'event'])
    counts.add(['warn', 'peer.fault'])
    counts.add(['warn', 'peer.fault'], 2)
    counts.add(['info', 'peer.fault'])
    expect(counts.samples().map(({ labels, value }) => [labels?.level, labels?.event, value])).toEqual([
      ['warn', 'peer.fault', 3],
      ['info', 'peer.fault', 1],
    ])
  })

  it('tells what it has too many of together', () => {
    const counts = new Counts('undernet_log_entries_total', ['level', 'event'])
    for (let at = 0; at < 10_000; at++) counts.add(['info', `event.${at}`])
    const samples = counts.samples()
    expect(samples.length).toBe(257)
    expect(samples.reduce((sum, { value }) => sum + value, 0)).toBe(10_000)
    expect(samples.at(-1)).toMatchObject({ labels: { level: 'other', event: 'other' }, value: 10_000 - 256 })
  })
})

describe('the times of requests', () => {
  it('are told as a histogram by front-end, each bucket with those below it', () => {
    const times = new HttpTimes()
    times.add('/nix/abc.narinfo?x=1', 200, 0.002)
    times.add('/nix/nar/abc', 200, 3)
    times.add('/nix', 404, 100)
    times.add('/v2/library/x/manifests/latest', 200, 0.01)
    times.add('/v3/discovery:clusters', 200, 0.01)
    times.add(`/${'x'.repeat(200)}`, 404, 0.01)
    const families = readExposition(exposition(times.samples()))
    const buckets = families.get('undernet_http_request_duration_seconds')?.samples ?? []
    const ofNix = buckets.filter(({ labels }) => labels.front === 'nix')
    expect(ofNix.map(({ labels, value }) => [labels.le, value])).toEqual([
      ['0.001', 0],
      ['0.005', 1],
      ['0.025', 1],
      ['0.1', 1],
      ['0.5', 1],
      ['2.5', 1],
      ['10', 2],
      ['60', 2],
      ['+Inf', 3],
      [undefined, 103.002],
      [undefined, 3],
    ])
    const requests = families.get('undernet_http_requests_total')?.samples ?? []
    expect(requests.map(({ labels, value }) => [labels.front, labels.code, value])).toEqual([
      ['nix', '2xx', 2],
      ['nix', '4xx', 1],
      ['oci', '2xx', 1],
      ['discovery', '2xx', 1],
      ['other', '4xx', 1],
    ])
  })
})

describe('the process', () => {
  it('tells what it takes', async () => {
    const values = Object.fromEntries((await processSamples()).map(({ name, value }) => [name, value]))
    expect(values.process_resident_memory_bytes).toBeGreaterThan(10_000_000)
    expect(values.process_cpu_seconds_total).toBeGreaterThan(0)
    expect(values.process_open_fds).toBeGreaterThan(2)
    expect(values.process_start_time_seconds).toBeLessThan(Date.now() / 1_000 + 1)
    expect(values.nodejs_eventloop_lag_seconds).toBeGreaterThanOrEqual(0)
  })
})
