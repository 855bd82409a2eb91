/**
 * `agent start`: runs the agent in the foreground until it is told to stop. A flag for each configuration key; the daemon itself is
 * loaded only once the configuration is known to be sound.
 */
import type { Command } from 'commander'
import { configKeys, loadConfig } from '../config.ts'

export function addStart(program: Command): void {
  const start = program.command('start').description('run the agent in the foreground').option('--config <file>')
  start.action(async ({ config: file, ...options }: Record<string, string | boolean | string[] | undefined>) => {
    const flags = Object.fromEntries(configKeys.map(({ key }) => [key, options[key]]))
    const config = loadConfig({ flags, file: file as string | undefined })
    const { runAgent } = await import('../node.ts')
    process.exitCode = await runAgent(config)
  })
}
