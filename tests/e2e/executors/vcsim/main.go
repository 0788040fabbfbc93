// The vCenter simulator of govmomi, and beside it what an administrator would do with govmomi's own client: see the hosts and
// the tasks, move a host, switch machines off, change DRS. Debian has the simulator as a library only.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync/atomic"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// How often somebody has asked for another page.
var continued int64

// The simulator answers in one page, whatever it is asked; a vCenter does not. There is one of these for each session.
type paging struct {
	simulator.PropertyCollector
	rest map[string][]types.ObjectContent
	most int
}

func (pager *paging) page(objects []types.ObjectContent) *types.RetrieveResult {
	result := &types.RetrieveResult{Objects: objects}
	if pager.most > 0 && len(objects) > pager.most {
		result.Token = strconv.Itoa(len(pager.rest)) + " & <more>"
		result.Objects = objects[:pager.most]
		pager.rest[result.Token] = objects[pager.most:]
	}
	return result
}

func (pager *paging) RetrievePropertiesEx(ctx *simulator.Context, request *types.RetrievePropertiesEx) soap.HasFault {
	whole := pager.PropertyCollector.RetrievePropertiesEx(ctx, request)
	body, ok := whole.(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return whole
	}
	pager.rest, pager.most = map[string][]types.ObjectContent{}, int(request.Options.MaxObjects)
	body.Res.Returnval = pager.page(body.Res.Returnval.Objects)
	return body
}

func (pager *paging) ContinueRetrievePropertiesEx(_ *simulator.Context, request *types.ContinueRetrievePropertiesEx) soap.HasFault {
	rest, ok := pager.rest[request.Token]
	if !ok {
		return &methods.ContinueRetrievePropertiesExBody{Fault_: simulator.Fault("no such token", &types.InvalidArgument{})}
	}
	delete(pager.rest, request.Token)
	atomic.AddInt64(&continued, 1)
	page := pager.page(rest)
	return &methods.ContinueRetrievePropertiesExBody{
		Res: &types.ContinueRetrievePropertiesExResponse{Returnval: *page},
	}
}

type host struct {
	Path        string `json:"path"`
	Maintenance bool   `json:"maintenance"`
	Running     int    `json:"running"`
}

type task struct {
	Host string `json:"host"`
	What string `json:"what"`
}

func main() {
	certificate := flag.String("certificate", "", "PEM")
	key := flag.String("key", "", "PEM")
	out := flag.String("out", "", "where the addresses are written")
	clusters := flag.Int("clusters", 1, "how many")
	clusterHosts := flag.Int("cluster-hosts", 3, "hosts of each of them")
	flag.Parse()

	model := simulator.VPX()
	model.Host = 1
	model.Cluster = *clusters
	model.ClusterHost = *clusterHosts
	model.Machine = 4
	must(model.Create())
	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	must(err)
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword("firmesh", "s3cret & <pw>")}
	server := model.Service.NewServer()

	ctx := context.Background()
	client, err := govmomi.NewClient(ctx, server.URL, true)
	must(err)
	collecting := &paging{}
	collecting.Self = client.ServiceContent.PropertyCollector
	simulator.Map.Put(collecting)
	// From here on nobody logs in but those who are tried: how often somebody has said the password.
	var told int64
	served := server.Config.Handler
	server.Config.Handler = http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		body, err := io.ReadAll(request.Body)
		if err != nil {
			http.Error(writer, err.Error(), http.StatusBadRequest)
			return
		}
		if bytes.Contains(body, []byte("s3cret")) {
			atomic.AddInt64(&told, 1)
		}
		request.Body = io.NopCloser(bytes.NewReader(body))
		served.ServeHTTP(writer, request)
	})
	finder := find.NewFinder(client.Client, true)
	collector := property.DefaultCollector(client.Client)

	hosts := func() []*object.HostSystem {
		found, err := finder.HostSystemList(ctx, "/DC0/host/*/*")
		must(err)
		return found
	}
	named := func(request *http.Request) *object.HostSystem {
		found, err := finder.HostSystem(ctx, request.URL.Query().Get("host"))
		must(err)
		return found
	}
	answer := func(writer http.ResponseWriter, value interface{}) {
		must(json.NewEncoder(writer).Encode(value))
	}
	wait := func(task *object.Task, err error) {
		must(err)
		must(task.Wait(ctx))
	}
	machines := func() []*object.VirtualMachine {
		found, err := finder.VirtualMachineList(ctx, "/DC0/vm/*")
		must(err)
		return found
	}

	http.HandleFunc("/hosts", func(writer http.ResponseWriter, _ *http.Request) {
		all := []host{}
		for _, found := range hosts() {
			var known mo.HostSystem
			must(collector.RetrieveOne(ctx, found.Reference(), []string{"runtime", "vm"}, &known))
			running := 0
			for _, machine := range known.Vm {
				var state mo.VirtualMachine
				must(collector.RetrieveOne(ctx, machine, []string{"runtime.powerState"}, &state))
				if state.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
					running++
				}
			}
			all = append(all, host{found.InventoryPath, known.Runtime.InMaintenanceMode, running})
		}
		answer(writer, all)
	})
	http.HandleFunc("/told", func(writer http.ResponseWriter, _ *http.Request) {
		answer(writer, atomic.LoadInt64(&told))
	})
	http.HandleFunc("/continued", func(writer http.ResponseWriter, _ *http.Request) {
		answer(writer, atomic.LoadInt64(&continued))
	})
	// What the inventory says of a host that is really there. Without a name of a cluster or of a host, that stays.
	http.HandleFunc("/disguise", func(writer http.ResponseWriter, request *http.Request) {
		words := request.URL.Query()
		known := simulator.Map.Get(named(request).Reference()).(*simulator.HostSystem)
		info := &known.Hardware.SystemInfo
		info.Vendor, info.Model, info.SerialNumber = words.Get("vendor"), words.Get("model"), words.Get("serial")
		// All hosts share the one that they were made with.
		bios := *known.Hardware.BiosInfo
		bios.BiosVersion = words.Get("bios")
		known.Hardware.BiosInfo = &bios
		if address := words.Get("bmc"); address != "" {
			known.Config.Ipmi = &types.HostIpmiInfo{BmcIpAddress: address}
		}
		if name := words.Get("cluster"); name != "" {
			cluster := simulator.Map.Get(*known.Parent).(*simulator.ClusterComputeResource)
			cluster.Name = name
		}
		if name := words.Get("name"); name != "" {
			known.Name = name
		}
	})
	http.HandleFunc("/tasks", func(writer http.ResponseWriter, _ *http.Request) {
		var manager mo.TaskManager
		must(collector.RetrieveOne(ctx, *client.ServiceContent.TaskManager, []string{"recentTask"}, &manager))
		all := []task{}
		for _, reference := range manager.RecentTask {
			var known mo.Task
			must(collector.RetrieveOne(ctx, reference, []string{"info"}, &known))
			for _, found := range hosts() {
				if known.Info.Entity != nil && *known.Info.Entity == found.Reference() {
					all = append(all, task{found.InventoryPath, known.Info.DescriptionId})
				}
			}
		}
		answer(writer, all)
	})
	http.HandleFunc("/enter", func(writer http.ResponseWriter, request *http.Request) {
		wait(named(request).EnterMaintenanceMode(ctx, 0, false, nil))
	})
	http.HandleFunc("/exit", func(writer http.ResponseWriter, request *http.Request) {
		wait(named(request).ExitMaintenanceMode(ctx, 0))
	})
	http.HandleFunc("/off", func(writer http.ResponseWriter, request *http.Request) {
		for _, machine := range machines() {
			state, err := machine.PowerState(ctx)
			must(err)
			if state == types.VirtualMachinePowerStatePoweredOn {
				wait(machine.PowerOff(ctx))
			}
		}
	})
	http.HandleFunc("/drs", func(writer http.ResponseWriter, request *http.Request) {
		cluster, err := finder.ClusterComputeResource(ctx, "/DC0/host/DC0_C0")
		must(err)
		// The simulator takes a change of DRS and does nothing about it.
		known := simulator.Map.Get(cluster.Reference()).(*simulator.ClusterComputeResource)
		drs := &known.ConfigurationEx.(*types.ClusterConfigInfoEx).DrsConfig
		drs.DefaultVmBehavior = types.DrsBehavior(request.URL.Query().Get("behaviour"))
	})

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	addresses, err := json.Marshal(map[string]string{
		"vcenter": "https://" + server.URL.Host,
		"control": "http://" + listener.Addr().String(),
	})
	must(err)
	must(os.WriteFile(*out+".new", addresses, 0o600))
	must(os.Rename(*out+".new", *out))
	log.Fatal(http.Serve(listener, nil))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
