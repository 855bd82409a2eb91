/**
 * The configuration file that is put on a machine: every key with what it means and what it is by default, commented out. Nothing in it
 * changes anything until somebody takes a `#` away.
 */
import { KEYS } from './keys.ts'

const COLUMNS = 100
/** As the service has them. */
const SERVICE_ENVIRONMENT = { STATE_DIRECTORY: '/var/lib/undernet', RUNTIME_DIRECTORY: '/run/undernet' }

export function configTemplate(): string {
  const keys = [...KEYS].map(([key, { help, byDefault, reloads }]) => {
    const isOfMachine = key === 'name'
    const value = isOfMachine ? 'node-1' : byDefault(SERVICE_ENVIRONMENT, SERVICE_ENVIRONMENT.STATE_DIRECTORY)
    const by = isOfMachine ? ' By default the name of this machine.' : ''
    const when = reloads ? '' : ' Takes effect with a restart.'
    return [...wrapped(`${help.charAt(0).toUpperCase()}${help.slice(1)}.${by}${when}`), ...assignment(key, value)].join(
      '\n',
    )
  })
  return `# Configuration of the undernet agent: each key with its default. Take the # of a key away to change it, then
#   sudo systemctl reload undernet     or, for a key that says so: sudo systemctl restart undernet
# \`agent config\` shows what holds, and where it comes from.
#
# Secrets do not belong here: logins of registries and tokens of networks are files that only root can read,
#   /etc/credstore/undernet.registry-auth (an auth.json) and /etc/credstore/undernet.join (a token a line)

${keys.join('\n\n')}
`
}

function assignment(key: string, value: unknown): string[] {
  const line = `#${key} = ${toml(value)}`
  if (line.length <= COLUMNS || !Array.isArray(value)) return [line]
  return [`#${key} = [`, ...value.map((one) => `#  ${toml(one)},`), '#]']
}

function toml(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(toml).join(', ')}]`
  return typeof value === 'string' ? JSON.stringify(value) : String(value)
}

function wrapped(text: string): string[] {
  const lines: string[] = []
  for (const word of text.split(' ')) {
    const last = lines.at(-1)
    if (last === undefined || last.length + 1 + word.length > COLUMNS) lines.push(`# ${word}`)
    else lines[lines.length - 1] = `${last} ${word}`
  }
  return lines
}
