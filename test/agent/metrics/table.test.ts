/** The table of metrics keeps to Prometheus' conventions, and the alert rules to the table. */
import { readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { METRICS, type MetricRow } from '../../../agent/metrics/table.ts'

const rows = Object.entries(METRICS) as [string, MetricRow][]
/** Words that would make a series for each peer, blob or path. */
const UNBOUNDED = /peer|id$|digest|address|host|path_|user/

describe('the table of metrics', () => {
  it('says with each what it tells, in a sentence', () => {
    expect(rows.filter(([, { help }]) => !/^[A-Z].*\.$/.test(help) || /[\n\\]/.test(help))).toEqual([])
  })

  it('names counters by _total, and nothing else', () => {
    expect(rows.filter(([name, { type }]) => name.endsWith('_total') !== (type === 'counter'))).toEqual([])
  })

  it('has the unit at the end of the name', () => {
    const unitOf = (name: string) => /_(bytes|seconds)(_total)?$/.exec(name)?.[1]
    expect(rows.filter(([name, { unit }]) => unitOf(name) !== unit)).toEqual([])
  })

  it('has names and labels that Prometheus takes, and no label with a value for each peer', () => {
    expect(rows.filter(([name]) => !/^(undernet|libp2p|process|nodejs)_[a-z0-9_]+$/.test(name))).toEqual([])
    const labels = rows.flatMap(([, row]) => row.labels ?? [])
    expect(labels.filter((label) => !/^[a-z][a-z_]*$/.test(label) || UNBOUNDED.test(label) || label === 'le')).toEqual(
      [],
    )
  })
})

describe('the alert rules', () => {
  const text = readFileSync(new URL('../../../nix/alerts.yml', import.meta.url), 'utf8')

  it('name metrics that there are', () => {
    const expressions = [...text.matchAll(/^ +expr: (.*)$/gm)].map(([, expression]) => expression ?? '')
    const named = new Set(expressions.flatMap((one) => one.match(/\b(undernet|libp2p|process|nodejs)_\w+/g) ?? []))
    expect(expressions.length).toBeGreaterThan(10)
    expect([...named].filter((name) => !(name in METRICS))).toEqual([])
  })

  it('name labels that these metrics have', () => {
    const wrong = [...text.matchAll(/\b((?:undernet|libp2p|process|nodejs)_\w+)\{(\w+)=/g)].filter(
      ([, name, label]) => {
        const row: MetricRow | undefined = METRICS[name as keyof typeof METRICS]
        return label !== 'job' && row?.labels?.includes(label ?? '') !== true
      },
    )
    expect(wrong).toEqual([])
  })

  it('say in each rule how bad it is, and what to do', () => {
    const rules = text.split(/^ +- alert: /m).slice(1)
    const needed = ['expr:', 'severity:', 'summary:', 'description:']
    expect(rules.filter((rule) => needed.some((word) => !rule.includes(word)))).toEqual([])
  })
})
