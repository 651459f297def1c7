// Runs templates through Go's own text/template the way Ollama does: stdin is a JSON list of {template, values},
// stdout the list of {text, error}. Messages are structs, the rest is a map, and a missing key is its zero value.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type message struct {
	Role    string
	Content string
}

type job struct {
	Template string
	Values   struct {
		System   string
		Messages []*message
		Response string
	}
}

type result struct {
	Text  string `json:"text"`
	Error string `json:"error"`
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	results := make([]result, len(jobs))
	for i, j := range jobs {
		var out bytes.Buffer
		t, err := template.New("").Option("missingkey=zero").Parse(j.Template)
		if err == nil {
			err = t.Execute(&out, map[string]any{
				"System": j.Values.System, "Messages": j.Values.Messages, "Response": j.Values.Response,
				"Think": false, "IsThinkSet": false,
			})
		}
		results[i].Text = out.String()
		if err != nil {
			results[i].Error = err.Error()
		}
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(results); err != nil {
		panic(err)
	}
}
