/** A strict reader of what Prometheus reads (text format 0.0.4), for tests: what it refuses, a Prometheus might. */

export type Family = {
  type: string
  help: string
  samples: { name: string; labels: Record<string, string>; value: number }[]
}

const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/s
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)/y

/** @throws {Error} naming the line that is wrong */
export function readExposition(text: string): Map<string, Family> {
  const families = new Map<string, Family>()
  const seen = new Set<string>()
  let family: Family | undefined
  let familyName = ''
  if (!text.endsWith('\n')) throw new Error('the last line has no end')
  for (const line of text.slice(0, -1).split('\n')) {
    const [, kind, name = '', rest = ''] = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line) ?? []
    if (kind === 'HELP') {
      if (families.has(name)) throw new Error(`twice: ${line}`)
      family = { help: rest, type: '', samples: [] }
      familyName = name
      families.set(name, family)
    } else if (kind === 'TYPE') {
      if (name !== familyName || family?.type !== '') throw new Error(`a type without its help before it: ${line}`)
      family.type = rest
    } else {
      const sample = readSample(line)
      if (family === undefined || !belongs(sample.name, familyName, family.type))
        throw new Error(`out of place: ${line}`)
      const key = `${sample.name} ${Object.entries(sample.labels)
        .map(String)
        .sort((a, b) => (a < b ? -1 : 1))
        .join()}`
      if (seen.has(key)) throw new Error(`twice: ${line}`)
      seen.add(key)
      family.samples.push(sample)
    }
  }
  return families
}

function readSample(line: string): Family['samples'][number] {
  const [, name = '', labelText, valueText = ''] = SAMPLE.exec(line) ?? []
  const value = Number(valueText.replace(/^([+-])Inf$/, '$1Infinity'))
  if (name === '' || Number.isNaN(value)) throw new Error(`not a sample: ${line}`)
  const labels: Record<string, string> = {}
  LABEL.lastIndex = 0
  while (labelText !== undefined && LABEL.lastIndex < labelText.length) {
    const [, label = '', escaped = ''] = LABEL.exec(labelText) ?? []
    if (label === '' || label in labels) throw new Error(`not labels: ${line}`)
    labels[label] = escaped.replace(/\\(.)/g, (_, after: string) => (after === 'n' ? '\n' : after))
  }
  return { name, labels, value }
}

function belongs(sample: string, family: string, type: string): boolean {
  if (type !== 'histogram') return sample === family
  return ['_bucket', '_sum', '_count'].some((part) => sample === family + part)
}
