/**
 * Samples as Prometheus reads them: the text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/), in the order of
 * the table, each metric with its help and type.
 */
import { METRICS, type MetricRow, type Sample } from './table.ts'

export const EXPOSITION_TYPE = 'text/plain; version=0.0.4; charset=utf-8'

export function exposition(samples: Iterable<Sample>): string {
  const byName = Map.groupBy(samples, ({ name }) => name)
  const lines: string[] = []
  for (const [name, row] of Object.entries(METRICS) as [Sample['name'], MetricRow][]) {
    const own = byName.get(name)
    if (own === undefined) continue
    lines.push(`# HELP ${name} ${escaped(row.help)}`, `# TYPE ${name} ${row.type}`)
    for (const { part = '', labels = {}, value } of own)
      lines.push(`${name}${part}${labelText(labels)} ${number(value)}`)
  }
  return `${lines.join('\n')}\n`
}

function labelText(labels: Readonly<Record<string, string>>): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escaped(value).replaceAll('"', '\\"')}"`)
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`
}

function escaped(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')
}

function number(value: number): string {
  if (Number.isNaN(value)) return 'NaN'
  if (Number.isFinite(value)) return String(value)
  return value > 0 ? '+Inf' : '-Inf'
}
