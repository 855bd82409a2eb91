/**
 * `agent start`: runs the agent in the foreground until it is told to stop. There is a flag for each configuration key; the daemon is
 * loaded only once the configuration is known to be sound.
 */
import type { Command } from 'commander'
import { configKeys } from '../config/keys.ts'
import type { CommandLine } from './command-line.ts'

type Flags = Record<string, string | boolean | string[] | undefined>

export function addStart(line: CommandLine): void {
  const command = line.command({
    usage: 'start',
    summary: 'run the agent in the foreground',
    details:
      'Each flag is also a key of the configuration file (listen, max_peers, ...) and a variable (UNDERNET_LISTEN, ...).',
    examples: [
      ['start', 'find peers on this network and share with them'],
      ['start --bootstrap /ip4/192.0.2.7/tcp/7477', 'join a node elsewhere'],
      ['start --state /tmp/b --listen /ip4/127.0.0.1/tcp/0 --http off --proxy off --dns off', 'a second agent here'],
    ],
  })
  command.option('--config <file>', 'configuration file')
  for (const key of configKeys) addFlag(command, key)
  command.action(async ({ config: file, ...options }: Flags) => {
    const flags = Object.fromEntries(configKeys.map(({ key }) => [key, options[camelCase(key)]]))
    const { loadConfig } = await import('../config/config.ts')
    const config = loadConfig({ flags, file: file as string | undefined })
    const { runAgent } = await import('../node.ts')
    line.endWith(await runAgent(config))
  })
}

/** A default is left to the configuration, so that it can tell a flag from none. */
function addFlag(command: Command, { key, help, isBoolean, isList }: (typeof configKeys)[number]): void {
  const flag = `--${key.replaceAll('_', '-')}`
  if (isBoolean) {
    command.option(flag, help).option(flag.replace('--', '--no-'), `do not ${help}`)
  } else if (isList) {
    const collect = (value: string, before: string[] | undefined) => [...(before ?? []), value]
    command.option(`${flag} <value>`, `${help}; repeatable`, collect)
  } else command.option(`${flag} <value>`, help)
}

/** As commander names the option of a flag. */
function camelCase(key: string): string {
  return key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase())
}
