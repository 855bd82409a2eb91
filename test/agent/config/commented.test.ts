/** The configuration file that is there at first. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { commentedConfig } from '../../../agent/config/commented.ts'
import { loadConfig } from '../../../agent/config/config.ts'
import { KEYS } from '../../../agent/config/keys.ts'

/** As the service has it. */
const env = { STATE_DIRECTORY: '/var/lib/undernet', RUNTIME_DIRECTORY: '/run/undernet' }

function load(text: string) {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-commented-'))
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }))
  const file = join(directory, 'agent.toml')
  writeFileSync(file, text)
  return loadConfig({ env, file })
}

it('changes nothing as it is', () => {
  const { values, entries } = load(commentedConfig())
  expect(values).toEqual(loadConfig({ env, file: '/dev/null' }).values)
  expect(entries.every(({ origin }) => origin === 'default')).toBe(true)
})

it('has every key, with what it is when nothing is said, in the form that is read', () => {
  const { values, entries } = load(commentedConfig().replaceAll(/^#(?! |$)/gm, ''))
  expect(
    entries
      .filter(({ origin }) => origin === 'file')
      .map(({ key }) => key)
      .sort(),
  ).toEqual([...KEYS.keys()].sort())
  const { values: defaults } = loadConfig({ env, file: '/dev/null' })
  expect({ ...values, name: defaults.name }).toEqual(defaults)
})

it('is the same on every machine', () => {
  const text = commentedConfig()
  expect(text).toContain('\n#name = "the-host-name"\n')
  // Lines of comments can be read where they are edited.
  expect(text.split('\n').filter((line) => line.startsWith('# ') && line.length > 140)).toEqual([])
})
