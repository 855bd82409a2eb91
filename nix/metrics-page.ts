/** agent/reference/metrics.md: every metric of /metrics with its type, unit and labels, from agent/metrics/table.ts. */
import { METRICS, type MetricRow } from '../agent/metrics/table.ts'

const HEAD = `# Metrics

<!-- Made by \`npm run reference\` from agent/metrics/table.ts. -->

\`http://127.0.0.1:7478/metrics\` tells these to Prometheus (or whoever asks from this machine). No label names a peer. [nix/alerts.yml](../../nix/alerts.yml) has
rules for alerts.

`

export function metricsPage(): string {
  const all: [string, MetricRow][] = Object.entries(METRICS)
  const families = Map.groupBy(all, ([name]) => name.split('_', 1)[0] as string)
  const sections = [...families].map(([family, rows]) =>
    [
      `## ${family}`,
      '',
      '| metric | type | what | labels |',
      '|---|---|---|---|',
      ...rows.map(([name, { type, help, labels = [] }]) => {
        const cells = [`\`${name}\``, type, help, labels.map((label) => `\`${label}\``).join(', ')]
        return `| ${cells.join(' | ')} |`
      }),
    ].join('\n'),
  )
  return `${HEAD}${sections.join('\n\n')}\n`
}
