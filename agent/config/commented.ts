/**
 * The configuration file that is there at first: every key as a comment, with what it is when nobody says otherwise. The same everywhere, so nothing
 * in it depends on the machine that wrote it. Only what installs loads this.
 */
import { stringify } from 'smol-toml'
import { CREDENTIALS } from './credentials.ts'
import { KEYS } from './keys.ts'
import { SERVICE_SOCKET } from './paths.ts'

const STATE = '/var/lib/undernet'
/** For the keys whose default is of the machine, or of how the agent was started. */
const OF_THE_MACHINE: Readonly<Record<string, string>> = { name: 'the-host-name', socket: SERVICE_SOCKET, state: STATE }

const HEAD = `# Configuration of the undernet agent: each key with what it is when nothing is said here.
# To change one, take the # away. Those marked with ! need \`systemctl restart undernet\`, the others
# \`systemctl reload undernet\`. \`agent config show\` prints what holds, and where it comes from.
#
# Secrets are files that only root can read: logins of registries in /etc/credstore/${CREDENTIALS.registry_auth} (an auth.json),
# tokens of networks in /etc/credstore/${CREDENTIALS.join_file} (one a line).
`

export function commentedConfig(): string {
  const blocks = [...KEYS].map(([key, { help, byDefault, reloads }]) => {
    const value = OF_THE_MACHINE[key] ?? byDefault({}, STATE)
    const lines = stringify({ [key]: value })
      .trimEnd()
      .split('\n')
    return `# ${reloads ? '' : '! '}${help}\n${lines.map((line) => `#${line}\n`).join('')}`
  })
  return [HEAD, ...blocks].join('\n')
}
