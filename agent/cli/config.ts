/** `agent config show`: each value of the configuration, and where it came from. */
import type { ConfigView } from '../api/contract.ts'
import { AgentError } from '../error.ts'
import type { CommandLine, Session } from './command-line.ts'
import { table } from './table.ts'

export function addConfig(line: CommandLine): void {
  const parent = line.command({
    usage: 'config',
    summary: 'the configuration, and where each value came from',
    details:
      'Flags of `agent start` come before UNDERNET_<KEY> variables, these before the file, and the file before defaults.',
    examples: [['config show', 'of the running agent']],
  })
  const show = line.command({
    parent,
    usage: 'show',
    summary: 'each value, and where it came from',
    details: 'Asks the running agent; without one it shows what an agent started here and now would use.',
    examples: [
      ['config show', 'a table'],
      ['config show --json', 'for scripts'],
    ],
  })
  line.asks(show, async (session) => {
    const { terminal, isJson } = session
    const view = await configView(session)
    if (isJson) return terminal.json(view)
    const rows = view.entries.map(({ key, value, origin, source }) => [
      key,
      Array.isArray(value) ? value.join(' ') || '(none)' : String(value),
      origin === 'default' ? 'default' : source,
    ])
    const columns = [
      { title: 'KEY', style: (text: string) => terminal.style('bold', text) },
      { title: 'VALUE', cut: 'end' as const },
      { title: 'FROM' },
    ]
    terminal.print(...table(columns, rows, terminal.columns))
    terminal.note('', view.file === null ? 'No configuration file was read.' : `Read from ${view.file}.`)
  })
}

async function configView({ client, terminal }: Session): Promise<ConfigView> {
  try {
    return await client.get<ConfigView>('config')
  } catch (error) {
    if (!(error instanceof AgentError && error.code === 'not-running')) throw error
    const { loadConfig } = await import('../config/config.ts')
    const { entries, file } = loadConfig()
    terminal.note('No agent is running; one started here and now would use:', '')
    return { file: file ?? null, entries: [...entries] }
  }
}
